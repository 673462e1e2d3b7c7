# SPDX-License-Identifier: Apache-2.0
"""A stage small enough for a test, run as a process of its own: `python toy_stage.py SETTINGS`.

SETTINGS is one JSON object: recipe (path), runs, resume, stop_after, overrides, poison (a key whose
pictures become no numbers), die_at (kills itself hard in the middle of that step), device.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvila_ros.training.data.encoding import Encoded, encode
from nvila_ros.training.data.packing import PackedBatch, pack
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.train import RunOptions, run_stage

FAMILY = """
name: toy
title: for tests
start: scratch
network:
  vision: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 2,
           image_size: 32, patch_size: 8}
  language: {vocab_size: 0, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
             num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16,
             max_position_embeddings: 512, model_max_length: 512, tie_word_embeddings: true}
  mm_projector_type: mlp_downsample
  num_video_frames: 2
"""
RECIPE = """
family: toy
stage: 1_align
title: for tests
learn: {vision_tower: 1.0e-3, mm_projector: 2.0e-3, llm: 3.0e-3}
schedule: {steps: 6, warmup_share: 0.1, max_gradient_norm: 1.0}
batch: {sequences: 4}
data: {sources: [{name: toy, format: simulator}]}
precision: {compute: float32}
engine: {save_every: 2, output_dtype: float32, checkpoint_layers: false}
"""
COLOURS = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "white": (255,) * 3}


def write_recipe(folder: Path, recipe: str = RECIPE) -> Path:
    """A family of its own with one recipe; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "family.yaml").write_text(FAMILY)
    path = folder / "1_align.yaml"
    path.write_text(recipe)
    return path


def toy_sample(number: int, has_picture: bool = True) -> Sample:
    """A coloured square and its name, or a sum in words."""
    name = [*COLOURS][number % len(COLOURS)]
    if not has_picture:
        turn = Turn(user=f"What is {'left ' * (number % 5)}?", answer=f"the {name} door.")
        return Sample(key=f"text-{number}", source="toy", kind="text", frames=(), turns=(turn,))
    picture = np.full((32, 32, 3), COLOURS[name], np.uint8)
    picture[number % 32] = 77
    turn = Turn(user="<image>\nWhat is this?", answer=" ".join([name] * (1 + number % 3)) + ".")
    return Sample(
        key=f"picture-{number}", source="toy", kind="image", frames=(picture,), turns=(turn,)
    )


class ToyBatches:
    """Sequence n of the run is the same whatever the number of ranks; rank r takes every n-th."""

    def __init__(self, tokenizer, config, rank: int, count: int, settings: dict[str, Any]) -> None:
        self.tokenizer, self.config, self.settings = tokenizer, config, settings
        self.rank, self.count, self.number = rank, count, 0

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        batch = pack(self.take())
        if self.settings.get("poison") in batch.keys:
            batch = dataclasses.replace(batch, pixels=torch.full(batch.pixels.shape, torch.nan))
        return batch

    def take(self) -> list[Encoded]:
        """The samples of the next sequence."""
        number = self.number * self.count + self.rank
        if self.settings.get("die_at") == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.number += 1
        # Sequence 1 of every four has no pictures: with two ranks one of them has none in a step.
        text_only = self.settings.get("text_rank") == self.rank or number % 4 == 1
        samples = [
            toy_sample(10 * number + place, not text_only and place != 2)
            for place in range(2 + number % 3)
        ]
        return [encode(sample, self.tokenizer, self.config) for sample in samples]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def let_deepspeed_use_the_cpu() -> None:
    """Accelerate takes DeepSpeed's path only where it thinks that there is an accelerator."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def prepare_backend(self, *_: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    PartialState._prepare_backend = prepare_backend


def run(settings: dict[str, Any]) -> None:
    """One stage as the settings say."""
    torch.set_num_threads(1)
    on_gpu = settings.get("device") == "cuda"
    has_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if has_deepspeed and not on_gpu:
        let_deepspeed_use_the_cpu()
    options = RunOptions(
        runs=Path(settings["runs"]),
        resume=settings.get("resume", False),
        start=Path(settings["start"]) if settings.get("start") else None,
        stop_after=settings.get("stop_after"),
        overrides=tuple(settings.get("overrides", ())),
        use_cpu=not has_deepspeed and not on_gpu,
    )

    def open_batches(recipe, tokenizer, model, ranks) -> ToyBatches:
        return ToyBatches(tokenizer, model.config, ranks.rank, ranks.count, settings)

    run_stage(Path(settings["recipe"]), options, open_batches)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))

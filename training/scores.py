# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint has learned by a stage: exactly right answers per task, on held-out apartments.

Answers that name times are also scored by the overlap of their spans with the true ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nvila_ros.errors import SceneError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.inputs import FusedInput, prepare, prepare_video
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.preprocess import frame_pixels
from nvila_ros.models.prompt import navigation_prompt, user_prompt
from nvila_ros.models.runtime_backend import InferenceEngine, as_engine
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.video import uniform_indices
from nvila_ros.training.data.sample import Sample, open_frame, shown_frames
from nvila_ros.training.simulator_source import HELD_OUT_SEED, SimulatorOptions, scene_samples
from nvila_ros.training.time_tokens import mean_iou

MAX_NEW_TOKENS = 48


@dataclass
class TaskScore:
    """How one task went."""

    num_samples: int = 0
    num_right: int = 0
    sum_iou: float = 0.0
    num_spans: int = 0

    def to_json(self) -> dict[str, float]:
        """Accuracy in [0, 1] and, where answers name times, mean IoU in [0, 1]."""
        result = {"num_samples": self.num_samples, "accuracy": self.num_right / self.num_samples}
        if self.num_spans:
            result["mean_iou"] = self.sum_iou / self.num_spans
        return result


def task_of(sample: Sample) -> str:
    """The last part of the key."""
    return sample.key.rsplit("/", 1)[-1]


def score_answers(
    answered: Iterable[tuple[Sample, str]], config: NvilaConfig
) -> dict[str, TaskScore]:
    """(sample, answer to its first turn) pairs -> scores per task, and `all` of them together."""
    scores: dict[str, TaskScore] = {}
    for sample, answer in answered:
        for task in (task_of(sample), "all"):
            score = scores.setdefault(task, TaskScore())
            score.num_samples += 1
            score.num_right += _bare(answer) == _bare(sample.turns[0].answer)
            if sample.time_spans_s and sample.duration_s:
                score.sum_iou += mean_iou(answer, sample.time_spans_s, config, sample.duration_s)
                score.num_spans += 1
    return dict(sorted(scores.items()))


def _bare(text: str) -> str:
    """Letter case and white space do not count: the small tokenizer keeps neither."""
    return "".join(text.lower().split())


@torch.inference_mode()
def answer(model: Nvila | InferenceEngine, tokenizer: Tokenizer, sample: Sample) -> str:
    """The model's greedy answer to a sample's first turn."""
    engine = as_engine(model)
    fused = _fuse(engine, tokenizer, sample)
    ids = engine.generate_greedy(
        fused.input_ids,
        fused.media,
        max_new_tokens=MAX_NEW_TOKENS,
        stop_ids=tokenizer.stop_ids,
    )
    return tokenizer.decode(ids).strip()


def _fuse(engine: InferenceEngine, tokenizer: Tokenizer, sample: Sample) -> FusedInput:
    config, user = engine.config, sample.turns[0].user
    if sample.kind == "navigation":
        side = config.vision.image_size
        num_shown = config.num_video_frames
        black = np.zeros((side, side, 3), np.uint8)
        shown = [
            black if frame is None else np.asarray(open_frame(frame))
            for frame in shown_frames(sample.frames, num_shown)
        ]
        pixels = torch.stack([frame_pixels(frame, config) for frame in shown])
        features = engine.encode_frames(pixels.to(engine.device, engine.dtype))
        prompt = navigation_prompt(user, num_shown - 1, tokenizer.special_tokens)
        return FusedInput(
            tokenizer.encode(user_prompt(prompt, config.chat_template)), list(features)
        )
    if sample.kind == "video":
        indices = uniform_indices(len(sample.frames), config.num_video_frames)
        frames = [open_frame(sample.frames[index]) for index in indices]
        return prepare_video(engine, tokenizer, user, frames)
    return prepare(engine, tokenizer, user, [open_frame(frame) for frame in sample.frames])


def score_stage(
    model: Nvila | InferenceEngine,
    tokenizer: Tokenizer,
    options: SimulatorOptions,
    num_scenes: int,
    first_seed: int = HELD_OUT_SEED,
) -> dict[str, Any]:
    """Held-out scores of a stage: task -> accuracy, and mean IoU where times are asked for."""
    answered: list[tuple[Sample, str]] = []
    num_without_episode = 0
    for seed in range(first_seed, first_seed + num_scenes):
        try:
            samples = scene_samples(seed, options)
        except SceneError:
            num_without_episode += 1
            continue
        answered += [(sample, answer(model, tokenizer, sample)) for sample in samples]
    scores = score_answers(answered, as_engine(model).config)
    return {
        "stage": options.stage,
        "seeds": [first_seed, first_seed + num_scenes],
        "num_without_episode": num_without_episode,
        "tasks": {task: score.to_json() for task, score in scores.items()},
    }

# SPDX-License-Identifier: Apache-2.0
"""An arm's weights on the disk: what learned, in float16, and the network's shape."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.ablation.arms import Arm
from nvila_ros.training.vocabulary import NetworkShape, build_sequences


def save_arm(run: Path, arm: Arm, state: dict[str, Tensor]) -> None:
    """Writes RUN/arms/NAME, which appears at once; `state` is `Runner.state`'s."""
    folder, temporary = run / "arms" / arm.name, run / f".{arm.name}"
    temporary.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(exist_ok=True)
    names = [name for name in state if name.startswith("model.")]
    half = {name: state[name].half().cpu().contiguous() for name in names}
    save_file(half, temporary / "weights.safetensors")
    (temporary / "network.json").write_text(json.dumps(asdict(arm.network)))
    temporary.rename(folder)


def load_arm(folder: Path, tower: dict, device: torch.device) -> tuple[Nvila, NetworkShape]:
    """A network that `Ablations` saved; `tower` is the frozen one's state."""
    shape = NetworkShape(**json.loads((folder / "network.json").read_text()))
    sequences = build_sequences(shape)
    model = Nvila.from_scratch(sequences.config)
    model.connect(sequences.tokenizer.media_ids, sequences.tokenizer.newline_ids)
    found = load_file(folder / "weights.safetensors")
    state = {f"vision_tower.{k}": v for k, v in tower.items()}
    state |= {k.removeprefix("model."): v.float() for k, v in found.items()}
    model.load_state_dict(state)
    return model.to(device).eval(), shape

# SPDX-License-Identifier: Apache-2.0
"""Runs of the toy stage, for tests: in this process, and what they leave."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

KINDS = {
    "ddp": {},
    "fsdp": {"ACCELERATE_USE_FSDP": "true"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"
)
every_kind = pytest.mark.parametrize(
    "kind",
    ["ddp", "fsdp", *(pytest.param(z, marks=needs_deepspeed) for z in ("zero2", "zero3"))],
)
PARTS = ("vision_tower", "mm_projector", "llm")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a stage's output by part and name."""
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for name, tensor in load_file(folder / "model" / part / "model.safetensors").items()
    }


def losses(log: list[dict]) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log]


def run_here(
    toy, tmp_path: Path, name: str = "runs", recipe: str | None = None, **settings
) -> Path:
    """One stage in this process; returns its folder."""
    path = toy.write_recipe(tmp_path / f"recipes-{name}", recipe or toy.RECIPE)
    toy.run({"recipe": str(path), "runs": str(tmp_path / name), **settings})
    return tmp_path / name / "toy" / "1_align"

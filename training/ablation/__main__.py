# SPDX-License-Identifier: Apache-2.0
"""Trains all arms of an ablation: `python -m nvila_ros.training.ablation RECIPE --out RUN`."""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import torch

from nvila_ros.training.ablation.arms import AblationRecipe, load_ablations
from nvila_ros.training.ablation.corpus import PatchCache
from nvila_ros.training.ablation.experiment import Ablations
from nvila_ros.training.ablation.runners import Runner
from nvila_ros.training.replay import FrameRing, Replay
from nvila_ros.training.vocabulary import build_sequences


def warm(recipe: AblationRecipe, device: torch.device, names: list[str]) -> None:
    """Compiles the steps of some arms, so that the compiler's cache knows them later."""
    config = build_sequences().config
    ring = FrameRing(64, config.vision.image_size, device, (1, 1))
    cache = PatchCache(ring, config.vision.grid_side**2, config.vision.hidden_size)
    for name in names:
        begin_s = time.monotonic()
        arm = recipe.arm(name)
        Runner(recipe, arm, build_sequences(arm.network), ring, cache, Replay(ring)).prepare()
        gc.collect()
        torch.compiler.reset()
        print(f"warm: {name} {time.monotonic() - begin_s:.1f} s", flush=True)


def main() -> None:
    """Command line of the ablations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--warm", nargs="+", metavar="ARM", help="only compile these arms' steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    from torch._dynamo import config  # here: the fleets' processes import this module too

    config.automatic_dynamic_shapes = False  # a shape each, as they were warmed
    recipe, device = load_ablations(arguments.recipe), torch.device(arguments.device)
    if arguments.warm:
        warm(recipe, device, arguments.warm)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    Ablations(recipe, arguments.out, device).run()


if __name__ == "__main__":
    main()

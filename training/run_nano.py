# SPDX-License-Identifier: Apache-2.0
"""Starts a training run: `python -m nvila_ros.training.run_nano RECIPE --out FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.checkpoint import load_run
from nvila_ros.training.nano import NanoTrainer
from nvila_ros.training.recipe import NanoRecipe, load_recipe
from nvila_ros.training.vocabulary import build_sequences


def build_trainer(recipe: NanoRecipe, out: Path, device: torch.device) -> NanoTrainer:
    """Model, tokenizer and trainer of a recipe; starts from `start_from` where it is given."""
    sequences = build_sequences()
    model = Nvila.from_scratch(sequences.config, seed=recipe.seed)
    model.connect(sequences.tokenizer.media_ids, sequences.tokenizer.newline_ids)
    trainer = NanoTrainer(recipe, model.to(device), sequences, out)
    if recipe.start_from:
        load_run(recipe.start_from, trainer.model, trainer.heads)
    return trainer


def main() -> None:
    """Command line of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    build_trainer(
        load_recipe(arguments.recipe), arguments.out, torch.device(arguments.device)
    ).run()


if __name__ == "__main__":
    main()

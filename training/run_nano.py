# SPDX-License-Identifier: Apache-2.0
"""Starts a training run: `python -m nvila_ros.training.run_nano RECIPE --out FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nvila_ros.models import weights
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.checkpoint import load_moments, load_run
from nvila_ros.training.nano import NanoTrainer
from nvila_ros.training.recipe import NanoRecipe, load_recipe
from nvila_ros.training.vocabulary import build_sequences


def build_trainer(recipe: NanoRecipe, out: Path, device: torch.device) -> NanoTrainer:
    """Model, tokenizer and trainer of a recipe; starts from `start_from` where it is given."""
    sequences = build_sequences(recipe.network)
    model = Nvila.from_scratch(sequences.config, seed=recipe.seed)
    model.connect(sequences.tokenizer.media_ids, sequences.tokenizer.newline_ids)
    trainer = NanoTrainer(recipe, model.to(device), sequences, out)
    _start(recipe, trainer)
    return trainer


def _start(recipe: NanoRecipe, trainer: NanoTrainer) -> None:
    """Weights of an earlier run, or of a released checkpoint, then heads and optimizer state."""
    if recipe.start_from is None:
        return
    folder = Path(recipe.start_from)
    if (folder / "config.json").is_file():
        released, _ = weights.load(folder)
        trainer.model.load_state_dict(released.state_dict())
    else:
        load_run(folder, trainer.model, None if recipe.start_heads else trainer.heads)
        if any(folder.glob("moments-*.safetensors")):
            load_moments(folder, trainer.optimizers)
    if recipe.start_heads:
        load_run(recipe.start_heads, None, trainer.heads)


def main() -> None:
    """Command line of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    build_trainer(
        load_recipe(arguments.recipe, arguments.set), arguments.out, torch.device(arguments.device)
    ).run()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Starts a training run of the small model from a recipe: `python -m nvila_ros.training.run_nano RECIPE --out RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nvila_ros.models.config import nano_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.sim.instructions import VOCABULARY_WORDS
from nvila_ros.training.checkpoint import load_run
from nvila_ros.training.nano import NanoTrainer
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.questions import question_words
from nvila_ros.training.recipe import NanoRecipe, load_recipe
from nvila_ros.training.sequences import SequenceBuilder


def build_tokenizer() -> Tokenizer:
    """The small model's tokenizer: the simulator's words, the questions' words, bytes for the rest."""
    return build_nano_tokenizer(sorted({*VOCABULARY_WORDS, *question_words()}))


def build_trainer(recipe: NanoRecipe, out: Path, device: torch.device) -> NanoTrainer:
    """Model, tokenizer and trainer of a recipe; starts from `start_from` where it is given."""
    tokenizer = build_tokenizer()
    config = nano_config(tokenizer.vocab_size)
    model = Nvila.from_scratch(config, seed=recipe.seed)
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    trainer = NanoTrainer(recipe, model.to(device), SequenceBuilder(tokenizer, config), out)
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
    build_trainer(load_recipe(arguments.recipe), arguments.out, torch.device(arguments.device)).run()


if __name__ == "__main__":
    main()

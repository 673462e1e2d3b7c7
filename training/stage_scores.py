# SPDX-License-Identifier: Apache-2.0
"""What a finished stage knows: its checkpoint is asked about apartments that no stage has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nvila_ros.config import load
from nvila_ros.models import weights
from nvila_ros.training.scores import score_stage
from nvila_ros.training.simulator_source import SimulatorOptions
from nvila_ros.training.stage_recipe import StageRecipe

SCORES_FILE = "scores.json"


def score_output(
    folder: Path, model_folder: Path, recipe: StageRecipe, device: torch.device
) -> dict[str, Any]:
    """Scores per simulator source and task, also written to `folder`/scores.json."""
    model, tokenizer = weights.load(model_folder, device)
    found: dict[str, Any] = {}
    for source in recipe.data.sources:
        if source.format != "simulator":
            continue
        # Held-out drives are the oracle's alone: the same for every model.
        options = {key: value for key, value in source.options.items() if key != "driver"}
        wanted = load(SimulatorOptions, options, f"source {source.name}")
        found[source.name] = score_stage(model, tokenizer, wanted, recipe.score_scenes)
    text = json.dumps(found, indent=2) + "\n"
    (folder / SCORES_FILE).write_text(text, encoding="utf-8")
    return found

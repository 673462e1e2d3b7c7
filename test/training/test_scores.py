# SPDX-License-Identifier: Apache-2.0
"""Scores of a stage: exact answers per task, overlap of times, the shipped model as a check."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.models.config import nano_config
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.scores import score_answers, score_stage
from nvila_ros.training.simulator_source import SimulatorOptions

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


def _sample(key, answer, **more):
    return Sample(
        key=key,
        source="x",
        kind="video",
        frames=(np.zeros((4, 4, 3), np.uint8),),
        turns=(Turn(user="<vila/video>", answer=answer),),
        **more,
    )


def test_answers_count_per_task_and_overlap_where_times_are_named():
    config = replace(nano_config(500), num_time_tokens=100)
    span = {"duration_s": 99.0, "time_spans_s": ((10.0, 20.0),)}
    answered = [
        (_sample("1/turn", "Left."), "left ."),
        (_sample("2/turn", "Left."), "Right."),
        (_sample("3/when", "From <t10> to <t20>.", **span), "From <t15> to <t20>."),
    ]
    scores = {name: score.to_json() for name, score in score_answers(answered, config).items()}
    assert scores["turn"] == {"num_samples": 2, "accuracy": 0.5}
    assert scores["when"] == {"num_samples": 1, "accuracy": 0.0, "mean_iou": pytest.approx(0.5)}
    assert scores["all"]["num_samples"] == 3


@pytest.mark.slow
def test_the_shipped_model_answers_what_it_was_taught():
    from nvila_ros.models import weights

    model, tokenizer = weights.load(NANO)
    options = SimulatorOptions(stage="questions", views_per_scene=8, questions_per_view=9)
    tasks = score_stage(model, tokenizer, options, num_scenes=2)["tasks"]
    assert tasks["absent"]["accuracy"] > 0.6 and tasks["free"]["accuracy"] > 0.6
    drives = SimulatorOptions(stage="navigation", max_decisions=12)
    assert score_stage(model, tokenizer, drives, 1)["tasks"]["all"]["accuracy"] > 0.2

# SPDX-License-Identifier: Apache-2.0
"""The simulate command's own words: what the head of its table says was run."""

from pathlib import Path

import pytest

from nvila_ros.evaluation.pool import EvaluationJob
from nvila_ros.evaluation.simulate import title


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"seeds": (7,), "driver": "oracle"}, "oracle, seed 7"),
        ({"seeds": (3, 4, 5), "model_path": Path("runs/a")}, "runs/a, seeds 3:6"),
        (
            {"seeds": (3, 4), "model_path": Path("/b"), "control": "blind", "mirrors": True},
            "/b, seeds 3:5, blind control, also in the mirror",
        ),
        (
            {"seeds": (3,), "model_path": Path("/b"), "asks": True},
            "/b, seed 3, asking before it stops",
        ),
    ],
)
def test_the_title_names_checkpoint_seeds_and_control(settings, expected):
    assert title(EvaluationJob(**{"driver": "model", "model_path": None, **settings})) == expected

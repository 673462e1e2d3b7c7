# SPDX-License-Identifier: Apache-2.0
"""What the demo says before it drives: the sentence, the goal it is judged by, where to watch."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nvila_ros.evaluation.drive_record import DriveRecord
from nvila_ros.evaluation.metrics import episode_metrics
from nvila_ros.nodes.demo import DemoSettings, _announce, _choose_episode
from nvila_ros.nodes.demo_result import result_line


@pytest.fixture
def announced(monkeypatch):
    """The lines for a typed sentence."""
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")

    def announce(instruction, seed=900_007):
        settings = DemoSettings(
            instruction=instruction,
            seed=seed,
            model_path=Path("model"),
            output=Path("demo"),
            timeout_s=1.0,
        )
        console = Console(file=io.StringIO(), soft_wrap=True, width=80)
        _announce(console, *_choose_episode(settings), settings)
        return console.file.getvalue().splitlines()

    return announce


def test_a_thing_that_is_not_there_is_told_before_the_drive(announced):
    """The documents' first command asked for a red sofa and was judged by a purple fridge."""
    _, where, note, things = announced("Go through the blue doorway and stop by the red sofa.")
    assert "m to the purple fridge" in where
    assert note == (
        "this apartment has no red sofa; judged by the episode's own goal, the purple fridge"
    )
    assert things.startswith("things here: pink sofa, white desk") and things.endswith(" more")


def test_a_goal_that_is_there_is_named_and_nothing_more_is_said(announced):
    sentence, where = announced("Stop by the white bookshelf.", seed=900_011)
    assert sentence == '"Stop by the white bookshelf."' and "m to the white bookshelf" in where
    assert len(announced(None)) == 2


def test_brackets_in_a_sentence_are_no_markup(announced):
    """'[/bold]' ended the demo with rich's traceback."""
    sentence, *_ = announced("Go [/bold] to the [red]white bookshelf.", seed=900_011)
    assert sentence == '"Go [/bold] to the [red]white bookshelf."'


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("SUCCEEDED", "No success (it stopped elsewhere): 3.00 m"),
        ("LOST", "No success (LOST): 3.0"),
    ],
)
def test_a_stop_elsewhere_is_not_called_succeeded(result, words):
    """'No success (SUCCEEDED)' was the end of such a demo."""
    metrics = episode_metrics(
        seed=1,
        path_m=np.array([[0.0, 0.0], [1.0, 0.0]]),
        goal_distances_m=np.array([4.0, 3.0]),
        start_distance_m=4.0,
        reference_m=np.array([[0.0, 0.0], [4.0, 0.0]]),
        stopped=True,
        num_decisions=2,
        collided=[False],
    )
    assert result_line(metrics, DriveRecord(result=result)).startswith(words)

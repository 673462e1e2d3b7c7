# SPDX-License-Identifier: Apache-2.0
"""What the demo says before it drives: the sentence, the goal it is judged by, where to watch."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from nvila_ros.nodes.demo import DemoSettings, _announce, _choose_episode


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

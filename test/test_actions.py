# SPDX-License-Identifier: Apache-2.0
"""The ten actions, the free-text parser, and the grammar over a tokenizer."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.action_trie import ActionTrie
from nvila_ros.actions import ACTIONS, STOP, parse_action
from nvila_ros.errors import ActionParseError
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer


def test_the_vocabulary_in_its_canonical_order():
    motions = [
        (action.kind, action.forward_m, round(math.degrees(action.turn_rad))) for action in ACTIONS
    ]
    assert motions == [
        ("stop", 0.0, 0),
        ("forward", 0.25, 0),
        ("forward", 0.5, 0),
        ("forward", 0.75, 0),
        ("left", 0.0, 15),
        ("left", 0.0, 30),
        ("left", 0.0, 45),
        ("right", 0.0, -15),
        ("right", 0.0, -30),
        ("right", 0.0, -45),
    ]
    assert [action.index for action in ACTIONS] == list(range(10))


def test_sentences_are_navilas():
    assert STOP.sentence == "The next action is stop."
    assert ACTIONS[3].sentence == "The next action is move forward 75 cm."
    assert ACTIONS[5].sentence == "The next action is turn left 30 degrees."


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.sentence)
def test_every_sentence_parses_to_its_action(action):
    assert parse_action(action.sentence) is action


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("the next action IS MOVE FORWARD 100 cm", 3),
        ("The next action is move forward 1 cm.", 1),
        ("The next action is move forward 60 cm.", 2),
        ("The next action is turn left 90 degrees", 6),
        ("The next action is turn right 15 degree.", 7),
        ("The next action is turn right 20.5 degrees.", 7),
        ("stop", 0),
        ("I have arrived, so I stop here.", 0),
        ("The next action is move forward " + "9" * 400 + " cm.", 3),
    ],
)
def test_amounts_are_clamped_to_the_vocabulary(text, index):
    assert parse_action(text).index == index


@pytest.mark.parametrize(
    "text",
    [
        "",
        "go ahead maybe",
        "forward",
        "The next action is move forward.",
        "The next action is move forward 2 m.",
        "The next action is move forward 0 cm.",
        "The next action is move forward -25 cm.",
        "The next action is turn left 25 cm.",
        "The next action is turn left or right 15 degrees.",
        "The next action is turn around 45 degrees.",
        "The next action is turn left 15 degrees. The next action is turn right 15 degrees.",
        "The next action is move forward 25 cm, then stop.",
        "Do not stop.",
        "I can't stop",
        "The next action is unstoppable",
    ],
)
def test_unclear_text_is_an_error_never_a_motion(text):
    with pytest.raises(ActionParseError):
        parse_action(text)


@given(st.text(max_size=200))
def test_any_text_is_an_action_or_the_error(text):
    with contextlib.suppress(ActionParseError):
        assert parse_action(text) in ACTIONS


def test_the_grammar_holds_each_sentence_exactly():
    tokenizer = build_nano_tokenizer(["turn"])
    trie = ActionTrie(tokenizer)
    assert [tokenizer.decode(sequence) for sequence in trie.sequences] == [
        action.sentence for action in ACTIONS
    ]

# SPDX-License-Identifier: Apache-2.0
"""Answers about a view are true."""

import math

import numpy as np
import pytest

from nvila_ros.training.questions import (
    NOT_VISIBLE,
    SeenObject,
    ask_about_view,
    distance_words,
    question_words,
    side_words,
)

CHAIR = SeenObject("chair", "red", math.radians(32), 2.1, 0.05)
DOOR = SeenObject("door", "blue", math.radians(-3), 4.2, 0.08)


@pytest.mark.parametrize(
    ("degrees", "words"),
    [(3, "ahead"), (14, "15 degrees left"), (-29, "30 degrees right"), (80, "45 degrees left")],
)
def test_sides_are_the_turns_that_face_them(degrees, words):
    assert side_words(math.radians(degrees)) == words


def test_distances_are_the_nearest_spoken_ones():
    assert [distance_words(x) for x in (0.1, 1.3, 2.6, 50.0)] == [
        "half a meter",
        "one and a half meters",
        "three meters",
        "eight meters",
    ]


def test_every_answer_about_a_view_is_true():
    rng = np.random.default_rng(0)
    turns = [
        t
        for _ in range(200)
        for t in ask_about_view(rng, [CHAIR, DOOR], ["green sofa"], "kitchen", 2)
    ]
    for question, answer in turns:
        if "red chair?" in question:
            assert answer == "It is 30 degrees left, two meters."
        elif "blue door?" in question:
            assert answer == "It is ahead, four meters."
        elif question.startswith("Where"):
            assert answer == NOT_VISIBLE
        elif question == "What is ahead?":
            assert answer == "The blue door."
        elif question.startswith("How far"):
            assert answer == "50 cm."
    assert len({question for question, _ in turns}) > 6


def test_the_vocabulary_covers_questions_and_answers():
    rng = np.random.default_rng(1)
    known = {*question_words(), "red", "chair", "blue", "door", "green", "sofa", "kitchen"}
    for question, answer in ask_about_view(rng, [CHAIR, DOOR], ["green sofa"], "kitchen", 1, 60):
        assert {word.strip(".,?") for word in f"{question} {answer}".split()} <= known

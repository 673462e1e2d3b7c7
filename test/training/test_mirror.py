# SPDX-License-Identifier: Apache-2.0
"""Mirrored training data is what the simulator would give in the mirrored apartment."""

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.training.mirror import (
    MIRRORED_ACTIONS,
    WordSwap,
    mirror_patches,
    mirror_targets,
)
from nvila_ros.training.vocabulary import build_sequences


def test_turns_change_sides_and_nothing_else():
    for action, twin in zip(ACTIONS, MIRRORED_ACTIONS, strict=True):
        sides = {"left": "right", "right": "left"}
        assert ACTIONS[twin].kind == sides.get(action.kind, action.kind)
        numbers = [
            int("".join(filter(str.isdigit, a.sentence)) or 0) for a in (action, ACTIONS[twin])
        ]
        assert numbers[0] == numbers[1]


def test_words_swap_in_instructions_and_answers_only():
    sequences = build_sequences()
    swap = WordSwap(sequences.tokenizer, sequences.config.language.vocab_size)
    one = sequences.navigation_prompt("Turn left, then pass the red sofa on your right.")
    other = sequences.navigation_prompt("Turn right, then pass the red sofa on your left.")
    assert np.array_equal(swap(one), other) and np.array_equal(swap(other), one)
    answers = np.array([answer[1] for answer in sequences.answers])
    assert np.array_equal(swap(answers), answers)


def test_labels_turn_round():
    assert mirror_patches(np.array([1, 2, 3, 4])).tolist() == [2, 1, 4, 3]
    targets = np.array([[0.5, 0.75, 2.0, 1.0, -0.25, 0.5]], np.float32)
    assert mirror_targets(targets).tolist() == [[-0.5, 0.75, 2.0, 1.0, 0.25, 0.5]]

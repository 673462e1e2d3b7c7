# SPDX-License-Identifier: Apache-2.0
"""Asked in the mirror, the mirrored policy gives the mirrored answer: exactly, for any weights."""

import dataclasses

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.mirrored_policy import TWINS, MirroredPolicy, mirrored_text
from nvila_ros.models.nvila import Nvila
from nvila_ros.policy import NavigationPolicy
from nvila_ros.training.vocabulary import build_sequences


@pytest.fixture(scope="module")
def network():
    sequences = build_sequences()
    model = Nvila.from_scratch(sequences.config, std=0.08).eval()
    model.connect(sequences.tokenizer.media_ids, sequences.tokenizer.newline_ids)
    return model, sequences.tokenizer


def _policy(network):
    return MirroredPolicy(*(NavigationPolicy(*network) for _ in range(2)))


def test_twins_change_sides_and_are_twins_of_each_other():
    for action in ACTIONS:
        twin = ACTIONS[TWINS[action.index]]
        assert TWINS[twin.index] == action.index
        assert mirrored_text(action.sentence) == twin.sentence


def test_words_are_swapped_whole_and_in_their_case():
    text = "Turn left at the bright lamp, then Right, leftover. Left!"
    assert mirrored_text(text) == "Turn right at the bright lamp, then Left, leftover. Right!"


def test_the_mirrored_world_gets_the_mirrored_answers(network):
    one, other = _policy(network), _policy(network)
    one.reset("Turn left at the red sofa, then stop.")
    other.reset("Turn right at the red sofa, then stop.")
    rng = np.random.default_rng(0)
    y_m = 0.0
    for step in range(4):
        picture = rng.integers(0, 256, (192, 192, 3), dtype=np.uint8)
        one.observe(picture, 0.3 * step, y_m, 0.2 * step, float(step))
        other.observe(picture[:, ::-1], 0.3 * step, -y_m, -0.2 * step, float(step))
        decision, mirrored = one.decide(), other.decide()
        assert mirrored.index == TWINS[decision.index]
        expected = [decision.probabilities[twin] for twin in TWINS]
        assert mirrored.probabilities == pytest.approx(expected, abs=1e-5)
        assert sum(decision.probabilities) == pytest.approx(1.0)
        one.tried(decision)
        other.tried(mirrored)
        y_m += 0.01
    assert one.num_samples == other.num_samples == 4


def test_what_the_restraint_bars_stays_barred(network):
    policy = _policy(network)
    policy.reset("Go to the blue door.")
    picture = np.zeros((192, 192, 3), np.uint8)
    policy.observe(picture, 0.0, 0.0, 0.0, 0.0)
    decision = policy.decide()
    left = next(a for a in ACTIONS if a.kind == "left")
    policy.tried(dataclasses.replace(decision, action=left))
    policy.observe(picture, 0.0, 0.0, 0.26, 1.0)
    probabilities = policy.decide().probabilities
    assert all(probabilities[a.index] == 0.0 for a in ACTIONS if a.kind == "right")
    assert sum(probabilities[a.index] for a in ACTIONS if a.kind == "left") > 0.0

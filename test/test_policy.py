# SPDX-License-Identifier: Apache-2.0
"""Navigation policy on a tiny random network: how often a frame is encoded, and what is refused."""

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.config import HistoryConfig
from nvila_ros.errors import CheckpointError, ImageError, InstructionError
from nvila_ros.policy import NavigationPolicy

INSTRUCTION = "Go through the red door and stop at the chair."


class CountingPolicy(NavigationPolicy):
    """Counts the frames that reach the vision tower."""

    def __init__(self, model, tokenizer, history=None):
        super().__init__(model, tokenizer, history)
        self.encoded: list[int] = []
        encode = model.encode_frames

        def counted(pixels):
            self.encoded.append(len(pixels))
            return encode(pixels)

        model.encode_frames = counted


@pytest.fixture
def policy(tiny_checkpoint):
    policy = CountingPolicy(*tiny_checkpoint())
    policy.reset(INSTRUCTION)
    return policy


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def drive(policy, begin: int, end: int) -> None:
    for unit in range(begin, end):
        assert policy.observe(noise(unit), 0.25 * unit, 0.0, 0.0, float(unit))


def test_first_decision_encodes_its_frame_and_the_black_padding(policy):
    drive(policy, 0, 1)
    decision = policy.decide()
    assert policy.encoded == [2] and decision.num_encoded_frames == 2
    assert decision.frame_indices == (None,) * 7 + (0,)


def test_each_later_decision_encodes_exactly_one_new_frame(policy):
    for unit in range(40):
        drive(policy, unit, unit + 1)
        policy.decide()
    assert policy.encoded == [2] + [1] * 39


def test_black_padding_is_encoded_once_for_all_episodes(policy):
    drive(policy, 0, 1)
    policy.decide()
    policy.reset(INSTRUCTION)
    drive(policy, 0, 1)
    policy.decide()
    assert policy.encoded == [2, 1]


def test_preparing_while_moving_leaves_one_frame_to_the_decision(policy):
    unit = 1
    drive(policy, 0, 1)
    policy.decide()
    for num_units in (3, 2, 3, 1, 3, 3, 3, 2, 3):
        drive(policy, unit, unit + num_units)
        unit += num_units
        assert policy.prepare() == num_units - 1
        assert policy.decide().num_encoded_frames == 1


def test_no_frame_is_ever_encoded_twice(policy):
    unit = 0
    for num_units in (1, 3, 2, 3, 1, 3, 3, 3, 2, 3):
        drive(policy, unit, unit + num_units)
        unit += num_units
        policy.decide()
    assert sum(policy.encoded) <= unit + 1


def test_deciding_again_on_the_same_frame_encodes_nothing(policy):
    drive(policy, 0, 3)
    first, second = policy.decide(), policy.decide()
    assert second.num_encoded_frames == 0
    assert second.probabilities == first.probabilities


def test_cached_features_give_the_decision_of_fresh_ones(policy):
    for unit in range(12):
        drive(policy, unit, unit + 1)
        cached = policy.decide()
    policy.reset(INSTRUCTION)
    drive(policy, 0, 12)
    fresh = policy.decide()
    assert fresh.frame_indices == cached.frame_indices
    assert fresh.probabilities == pytest.approx(cached.probabilities, abs=1e-6)


def test_decision_is_one_of_the_ten_with_its_probability(policy):
    drive(policy, 0, 2)
    decision = policy.decide()
    assert decision.action is ACTIONS[decision.index]
    assert decision.sentence == decision.action.sentence
    assert sum(decision.probabilities) == pytest.approx(1.0)
    assert decision.confidence == decision.probabilities[decision.index]
    assert decision.latency_s > 0.0 and decision.stamp_s == 1.0


def test_what_is_seen_and_what_is_said_change_the_decision(policy):
    drive(policy, 0, 2)
    base = policy.decide().probabilities
    policy.reset("Go through the door and stop at the red chair.")
    drive(policy, 0, 2)
    assert policy.decide().probabilities != pytest.approx(base, abs=1e-6)
    policy.reset(INSTRUCTION)
    drive(policy, 0, 1)
    policy.observe(noise(99), 0.25, 0.0, 0.0, 1.0)
    assert policy.decide().probabilities != pytest.approx(base, abs=1e-6)


def test_reset_starts_with_an_empty_history(policy):
    drive(policy, 0, 5)
    policy.reset(INSTRUCTION)
    assert policy.num_samples == 0
    with pytest.raises(ImageError, match="no image yet"):
        policy.decide()


def test_deciding_without_an_instruction_is_refused(tiny_checkpoint):
    policy = NavigationPolicy(*tiny_checkpoint())
    policy.observe(noise(0), 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(InstructionError, match="no instruction yet"):
        policy.decide()


@pytest.mark.parametrize("text", ["", "  \n", "x" * 2001, "go <image> there", "go <|im_end|>"])
def test_a_refused_instruction_leaves_the_running_episode_alone(policy, text):
    drive(policy, 0, 2)
    with pytest.raises(InstructionError):
        policy.reset(text)
    assert policy.decide().frame_indices[-1] == 1


def test_number_of_frames_follows_the_configuration(tiny_checkpoint):
    policy = NavigationPolicy(*tiny_checkpoint(), HistoryConfig(num_frames=4))
    policy.reset(INSTRUCTION)
    drive(policy, 0, 1)
    assert policy.decide().frame_indices == (None, None, None, 0)


def test_a_saved_checkpoint_decides_the_same(policy, tiny_folder):
    loaded = NavigationPolicy.load(tiny_folder)
    loaded.reset(INSTRUCTION)
    for either in (policy, loaded):
        drive(either, 0, 3)
    assert loaded.decide().probabilities == pytest.approx(policy.decide().probabilities)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing_here"):
        NavigationPolicy.load(tmp_path / "nothing_here")

# SPDX-License-Identifier: Apache-2.0
"""Thinking while moving: when to ask, and what is left of a decision taken on the way."""

import math

import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.decision import Decision
from nvila_ros.think_ahead import FIRST_LATENCY_S, MARGIN_S, ThinkAhead, ThinkingConfig

FORWARD_75, LEFT_30 = ACTIONS[3], ACTIONS[5]


def decision(action, pose=(0.0, 0.0, 0.0)):
    return Decision(
        action=action,
        confidence=1.0,
        probabilities=(0.1,) * 10,
        latency_s=0.1,
        num_encoded_frames=1,
        frame_indices=(0,),
        stamp_s=0.0,
        pose=pose,
    )


def test_it_asks_when_the_motion_ends_with_the_answer():
    thinking = ThinkAhead(ThinkingConfig())
    assert not thinking.is_time(FIRST_LATENCY_S + MARGIN_S + 0.1, 0.05, 0.0)
    assert thinking.is_time(FIRST_LATENCY_S + MARGIN_S, 0.05, 0.0)
    for _ in range(20):
        thinking.latency.add(0.4)
    assert thinking.is_time(0.44, 0.05, 0.0)


@pytest.mark.parametrize("left", [(0.0, 0.2, 0.0), (0.0, 0.0, 0.3)])
def test_it_does_not_ask_far_from_the_end(left):
    assert not ThinkAhead(ThinkingConfig()).is_time(*left)


def test_it_can_be_switched_off():
    assert not ThinkAhead(ThinkingConfig(ahead=False)).is_time(0.0, 0.0, 0.0)


def test_what_was_driven_since_the_frame_is_taken_off():
    thinking = ThinkAhead(ThinkingConfig())
    assert thinking.left_of(decision(FORWARD_75), (0.10, 0.0, 0.0)) == pytest.approx((0.65, 0.0))
    left = thinking.left_of(decision(LEFT_30), (0.0, 0.0, math.radians(4)))
    assert left == pytest.approx((0.0, math.radians(26)))
    # The other way round: the last motion still turned to the right.
    left = thinking.left_of(decision(LEFT_30), (0.0, 0.0, -math.radians(4)))
    assert left == pytest.approx((0.0, math.radians(34)))


@pytest.mark.parametrize("pose", [(0.3, 0.0, 0.0), (0.0, 0.0, 0.3), (0.0, 0.2, 0.0)])
def test_a_decision_older_than_its_frames_allow_is_dropped(pose):
    assert ThinkAhead(ThinkingConfig()).left_of(decision(FORWARD_75), pose) is None


def test_a_motion_that_was_nearly_driven_is_not_meant_any_more():
    thinking = ThinkAhead(ThinkingConfig(ahead_m=0.5))
    assert thinking.left_of(decision(ACTIONS[1]), (0.2, 0.0, 0.0)) is None


def test_a_decision_without_a_pose_is_taken_whole():
    left = ThinkAhead(ThinkingConfig()).left_of(decision(FORWARD_75, None), (9.0, 9.0, 0.0))
    assert left == (0.75, 0.0)

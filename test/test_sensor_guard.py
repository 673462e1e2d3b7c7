# SPDX-License-Identifier: Apache-2.0
"""Sensors that speak but say nothing are not heard."""

import numpy as np
import pytest

from nvila_ros.sensor_guard import NUM_IN_ORDER, FrozenPictureGuard, StampGuard

NOISE = np.random.default_rng(0)


def picture():
    return NOISE.integers(0, 255, (32, 32, 3), np.uint8)


def test_stamps_that_rise_are_taken():
    guard = StampGuard("camera")
    assert not any(guard.problem(stamp_s) for stamp_s in (0.1, 0.2, 5.0))


def test_a_repeated_stamp_does_not_count():
    guard = StampGuard("camera")
    guard.problem(1.0)
    assert "repeats" in guard.problem(1.0) and not guard.went_back
    assert not guard.problem(1.1)


def test_after_a_jump_back_the_source_must_prove_itself():
    guard = StampGuard("camera")
    guard.problem(100.0)
    assert "went back by 90.000 s" in guard.problem(10.0) and guard.went_back
    problems = [guard.problem(10.0 + 0.1 * (count + 1)) for count in range(NUM_IN_ORDER + 1)]
    assert all(problems[:NUM_IN_ORDER]) and not problems[-1] and not guard.went_back


def test_without_stamps_nothing_can_be_said():
    guard = StampGuard("odometry")
    assert not any(guard.problem(0.0) for _ in range(5))


@pytest.mark.parametrize("pose", [(0.2, 0.0, 0.0), (0.0, 0.0, 0.3)])
def test_one_picture_from_two_places_is_frozen(pose):
    guard, frozen = FrozenPictureGuard(), picture()
    assert not guard.problem(frozen, (0.0, 0.0, 0.0))
    assert not guard.problem(frozen, (0.05, 0.0, 0.0))  # a robot that stands sees the same
    assert "one picture" in guard.problem(frozen, pose)
    assert not guard.problem(picture(), pose)


def test_a_turn_through_pi_is_a_small_one():
    guard, frozen = FrozenPictureGuard(), picture()
    guard.problem(frozen, (0.0, 0.0, 3.13))
    assert not guard.problem(frozen, (0.0, 0.0, -3.13))

# SPDX-License-Identifier: Apache-2.0
"""A decision that led nowhere is not offered again until the robot has moved on."""

import math

from nvila_ros.restraint import EVERY_ACTION, FORWARD, LEFT, RIGHT, Restraint

STOP, FORWARD_75, LEFT_15, LEFT_45, RIGHT_45 = 0, 3, 4, 6, 9


def _after(*steps):
    """Allowed actions at the last of (x_m, yaw_deg, decided there) steps."""
    restraint = Restraint()
    for x_m, yaw_deg, decided in steps:
        allowed = restraint.allowed(x_m, 0.0, math.radians(yaw_deg))
        if decided is not None:
            restraint.tried(decided, x_m, 0.0, math.radians(yaw_deg))
    return allowed


def test_everything_is_offered_at_first_and_after_moving():
    assert _after((0.0, 0.0, None)) == EVERY_ACTION
    assert _after((0.0, 0.0, FORWARD_75), (0.75, 0.0, None)) == EVERY_ACTION


def test_a_blocked_forward_bars_forward_until_the_robot_turned():
    assert _after((0.0, 0.0, FORWARD_75), (0.02, 0.0, None)) == EVERY_ACTION - FORWARD
    turned = _after((0.0, 0.0, FORWARD_75), (0.02, 0.0, LEFT_45), (0.02, 45.0, None))
    assert turned == EVERY_ACTION - RIGHT


def test_a_turn_that_was_blocked_too_leaves_forward_barred():
    stuck = _after((0.0, 0.0, FORWARD_75), (0.0, 0.0, LEFT_45), (0.0, 1.0, None))
    assert stuck == EVERY_ACTION - FORWARD - RIGHT


def test_a_turn_bars_turning_back_until_the_robot_moved():
    assert _after((0.0, 0.0, LEFT_15), (0.0, 15.0, None)) == EVERY_ACTION - RIGHT
    assert _after((0.0, 0.0, RIGHT_45), (0.0, -45.0, None)) == EVERY_ACTION - LEFT
    moved = _after((0.0, 0.0, LEFT_15), (0.0, 15.0, FORWARD_75), (0.75, 15.0, None))
    assert moved == EVERY_ACTION


def test_a_full_turn_on_the_spot_bars_turning():
    spin = [(0.0, 45.0 * k, LEFT_45) for k in range(8)]
    assert _after(*spin, (0.0, 360.0, None)) == EVERY_ACTION - LEFT - RIGHT


def test_stop_is_always_offered_and_clear_forgets():
    restraint = Restraint()
    for k in range(50):
        allowed = restraint.allowed(0.0, 0.0, math.radians(45.0 * k))
        assert STOP in allowed and len(allowed) > 1
        restraint.tried(max(allowed), 0.0, 0.0, math.radians(45.0 * k))
    restraint.clear()
    assert restraint.allowed(0.0, 0.0, 0.0) == EVERY_ACTION

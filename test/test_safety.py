# SPDX-License-Identifier: Apache-2.0
"""Whatever is old, unknown or no number comes out as zero."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import OdometryError
from nvila_ros.safety import (
    CommandGate,
    SafetyConfig,
    Velocity,
    Watchdog,
    checked_pose,
    free_ahead_m,
    limited,
)

CONFIG = SafetyConfig()


@given(st.floats(), st.floats())
def test_limits_hold_for_every_number(forward_m_s, turn_rad_s):
    velocity = limited(Velocity(forward_m_s, turn_rad_s), CONFIG)
    assert abs(velocity.forward_m_s) <= CONFIG.forward_limit_m_s
    assert abs(velocity.turn_rad_s) <= CONFIG.turn_limit_rad_s


def test_half_a_command_is_no_command():
    assert limited(Velocity(0.3, math.nan), CONFIG).is_zero()


def test_a_gate_is_shut_until_a_command_and_after_its_time():
    gate = CommandGate(CONFIG)
    assert gate.take(0.0).is_zero()
    gate.give(Velocity(0.3, 0.0), 10.0)
    assert gate.take(10.2) == Velocity(0.3, 0.0)
    assert gate.take(10.3).is_zero()
    assert gate.take(9.0).is_zero()


def test_stop_shuts_the_gate():
    gate = CommandGate(CONFIG)
    gate.give(Velocity(0.3, 0.0), 10.0)
    gate.stop()
    assert gate.take(10.0).is_zero()


def test_watchdog_wants_image_and_odometry():
    watchdog = Watchdog(CONFIG)
    assert watchdog.stale(0.0) == "no image yet"
    watchdog.hear("image", 0.0)
    assert watchdog.stale(0.0) == "no odometry yet"
    watchdog.hear("odometry", 0.0)
    assert watchdog.stale(0.4) == ""
    assert "odometry" in watchdog.stale(0.6)
    watchdog.hear("odometry", 1.0)
    assert "image" in watchdog.stale(1.1)


def test_watchdog_misses_a_lidar_only_once_it_was_heard():
    watchdog = Watchdog(CONFIG)
    for now_s in (0.0, 2.0):
        watchdog.hear("image", now_s)
        watchdog.hear("odometry", now_s)
        assert watchdog.stale(now_s) == ("" if now_s == 0.0 else "no scan for more than 1 s")
        watchdog.hear("scan", 0.0)


@pytest.mark.parametrize("yaw_rad", [0.0, 1.0, -3.0])
def test_pose_from_quaternion(yaw_rad):
    rotation = (0.0, 0.0, math.sin(yaw_rad / 2), math.cos(yaw_rad / 2))
    assert checked_pose(1.0, 2.0, rotation) == pytest.approx((1.0, 2.0, yaw_rad))


@pytest.mark.parametrize(
    "x_m, rotation",
    [
        (math.nan, (0.0, 0.0, 0.0, 1.0)),
        (math.inf, (0.0, 0.0, 0.0, 1.0)),
        (0.0, (0.0, 0.0, math.nan, 1.0)),
        (0.0, (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_a_pose_that_cannot_be_is_an_error(x_m, rotation):
    with pytest.raises(OdometryError):
        checked_pose(x_m, 0.0, rotation)


def scan(**returns_m: float) -> np.ndarray:
    """360 rays, one per degree, infinite but for `deg<angle>`."""
    ranges_m = np.full(360, np.inf)
    for name, range_m in returns_m.items():
        ranges_m[int(name.removeprefix("deg")) % 360] = range_m
    return ranges_m


STEP_RAD = math.tau / 360


def test_way_ahead_ends_where_the_edge_touches():
    assert free_ahead_m(scan(deg0=1.0), 0.0, STEP_RAD, 0.2) == pytest.approx(0.8)


def test_what_is_beside_or_behind_is_not_in_the_way():
    beside = scan(deg90=0.25, deg270=0.25, deg180=0.3, deg30=1.0)
    assert free_ahead_m(beside, 0.0, STEP_RAD, 0.2) == math.inf


def test_corner_of_a_door_is_in_the_way():
    free_m = free_ahead_m(scan(deg10=0.6), 0.0, STEP_RAD, 0.2)
    assert 0.3 < free_m < 0.6


def test_lidar_may_start_behind():
    backwards = np.roll(scan(deg0=1.0), 180)
    assert free_ahead_m(backwards, -math.pi, STEP_RAD, 0.2) == pytest.approx(0.8)


@pytest.mark.parametrize("ranges_m", [np.full(360, np.nan), np.zeros(360), np.zeros(0)])
def test_a_scan_without_a_return_that_means_anything_is_unknown(ranges_m):
    assert math.isnan(free_ahead_m(ranges_m, 0.0, STEP_RAD, 0.2))

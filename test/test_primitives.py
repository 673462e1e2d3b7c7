# SPDX-License-Identifier: Apache-2.0
"""Primitives on a kinematic robot: they end where they should, and say why when they cannot."""

import itertools
import math

import pytest

from nvila_ros.errors import ConfigError, OdometryError
from nvila_ros.primitives import MotionConfig, Primitive, PrimitiveState

CONFIG = MotionConfig()
STEP_S = 0.05


def drive(primitive, start=(1.0, 2.0, 0.5), slip=1.0, latency_steps=1, limit_s=30.0, **update):
    """Runs it on a robot whose odometry is late; (last step, pose, time, speeds)."""
    pose, poses, speeds, now_s = start, [start] * (latency_steps + 1), [], 0.0
    while now_s < limit_s:
        step = primitive.update(*poses[-1 - latency_steps], now_s, **update)
        if step.state is not PrimitiveState.RUNNING:
            break
        forward_m, turn_rad = step.velocity.forward_m_s * STEP_S * slip, step.velocity.turn_rad_s
        yaw_rad = pose[2] + turn_rad * STEP_S * slip
        pose = (
            pose[0] + forward_m * math.cos(yaw_rad),
            pose[1] + forward_m * math.sin(yaw_rad),
            math.remainder(yaw_rad, math.tau),
        )
        poses.append(pose)
        speeds.append(step.velocity)
        now_s += STEP_S
    return step, pose, now_s, speeds


@pytest.mark.parametrize("forward_m", [0.25, 0.50, 0.75, -0.25])
@pytest.mark.parametrize("yaw_rad", [0.0, 3.1, -2.0])
def test_forward_ends_within_tolerance(forward_m, yaw_rad):
    step, pose, _, _ = drive(Primitive(forward_m, 0.0, CONFIG), (1.0, 2.0, yaw_rad))
    reached_m = (pose[0] - 1.0) * math.cos(yaw_rad) + (pose[1] - 2.0) * math.sin(yaw_rad)
    assert step.state is PrimitiveState.DONE and step.velocity.is_zero()
    assert abs(reached_m - forward_m) <= CONFIG.distance_tolerance_m
    assert step.forward_m == pytest.approx(reached_m, abs=0.02)


@pytest.mark.parametrize("turn_deg", [15, 30, 45, -15, -30, -45, 360])
@pytest.mark.parametrize("yaw_rad", [0.0, 3.1, -3.1])
def test_turn_ends_within_tolerance(turn_deg, yaw_rad):
    step, pose, _, _ = drive(Primitive(0.0, math.radians(turn_deg), CONFIG), (0.0, 0.0, yaw_rad))
    error_rad = math.remainder(pose[2] - yaw_rad - math.radians(turn_deg), math.tau)
    assert step.state is PrimitiveState.DONE
    assert abs(error_rad) <= CONFIG.angle_tolerance_rad
    assert step.turn_rad == pytest.approx(math.radians(turn_deg), abs=0.05)


def test_speed_is_a_trapezoid():
    _, _, _, speeds = drive(Primitive(0.75, 0.0, CONFIG))
    forward = [velocity.forward_m_s for velocity in speeds]
    steepest = CONFIG.acceleration_m_s2 * STEP_S
    rises = [after - before for before, after in itertools.pairwise(forward)]
    assert max(forward) == CONFIG.max_forward_m_s
    assert max(rises) <= steepest + 1e-9
    assert min(rises) >= -3 * steepest
    assert forward[-1] < 0.2 * CONFIG.max_forward_m_s


def test_it_takes_little_longer_than_its_ideal_time():
    primitive = Primitive(0.75, 0.0, CONFIG)
    assert primitive.ideal_s == pytest.approx(2.0)
    assert primitive.deadline_s == pytest.approx(7.0)
    _, _, now_s, _ = drive(primitive)
    assert now_s < 1.6 * primitive.ideal_s


def test_a_robot_that_does_not_move_is_blocked():
    step, _, now_s, _ = drive(Primitive(0.5, 0.0, CONFIG), slip=0.0)
    assert step.state is PrimitiveState.FAILED and step.reason == "blocked"
    assert step.velocity.is_zero() and now_s < CONFIG.stuck_time_s + 0.2


@pytest.mark.parametrize("target", [(0.75, 0.0), (-0.75, 0.0), (0.0, math.radians(90.0))])
def test_wheels_that_turn_for_nothing_are_slip_long_before_the_deadline(target):
    primitive = Primitive(*target, CONFIG)
    step, _, now_s, _ = drive(primitive, slip=0.15)
    assert (step.state, step.reason) == (PrimitiveState.FAILED, "slip")
    assert step.velocity.is_zero() and now_s <= CONFIG.stuck_time_s + 2 * STEP_S
    assert 0.0 < abs(step.forward_m) + abs(step.turn_rad) < 0.5 * abs(sum(target))


def test_wheels_that_lose_their_grip_on_the_way_are_slip():
    primitive = Primitive(0.75, 0.0, CONFIG)
    x_m, now_s, step = 0.0, 0.0, primitive.update(0.0, 0.0, 0.0, 0.0)
    while step.state is PrimitiveState.RUNNING:
        x_m += step.velocity.forward_m_s * STEP_S * (1.0 if x_m < 0.3 else 0.1)
        now_s += STEP_S
        step = primitive.update(x_m, 0.0, 0.0, now_s)
    assert step.reason == "slip" and 0.3 < x_m < 0.45


@pytest.mark.parametrize("run_up_s", [0.15, 0.2, 0.3, 0.5, 1.0, 2.0])
def test_a_turn_that_comes_to_stand_is_blocked_however_long_it_went(run_up_s):
    """Shortly after the beginning, one window holds both the way that was made and the standing."""
    primitive = Primitive(0.0, math.radians(90.0), MotionConfig(max_turn_rad_s=0.3))
    yaw_rad, now_s, step = 0.0, 0.0, primitive.update(0.0, 0.0, 0.0, 0.0)
    while step.state is PrimitiveState.RUNNING:
        if now_s < run_up_s:
            yaw_rad += step.velocity.turn_rad_s * STEP_S
        now_s += STEP_S
        step = primitive.update(0.0, 0.0, yaw_rad, now_s)
    assert yaw_rad > 0.0 and step.reason == "blocked"
    assert now_s <= run_up_s + CONFIG.stuck_time_s + 3 * STEP_S


@pytest.mark.parametrize("slip", [0.4, 0.7, 1.0, 1.3])
def test_a_base_slower_or_faster_than_commanded_does_not_slip(slip):
    assert drive(Primitive(0.75, 0.0, CONFIG), slip=slip)[0].state is PrimitiveState.DONE
    assert drive(Primitive(0.0, 0.8, CONFIG), slip=slip)[0].state is PrimitiveState.DONE


def test_a_base_that_answers_late_does_not_slip():
    """A velocity smoother and a network: 0.3 s."""
    step = drive(Primitive(0.75, 0.0, CONFIG), latency_steps=6)[0]
    assert step.state is PrimitiveState.DONE


def test_without_a_share_a_robot_that_slips_runs_into_the_deadline():
    primitive = Primitive(0.75, 0.0, MotionConfig(slip_share=0.0))
    step, _, now_s, _ = drive(primitive, slip=0.15)
    assert (step.state, step.reason) == (PrimitiveState.FAILED, "timeout")
    assert now_s == pytest.approx(primitive.deadline_s, abs=0.11)
    assert 0.0 < step.forward_m < 0.75


@pytest.mark.parametrize(
    "target, pushed, yaw_rad",
    [
        ((0.5, 0.0), (0.0, 0.2), 0.0),
        ((0.5, 0.0), (-0.2, 0.0), 0.0),
        ((0.5, 0.0), (0.0, 0.0), 0.4),
        ((0.0, 0.5), (0.1, 0.15), 0.0),
    ],
)
def test_what_leaves_the_line_the_spot_or_the_heading_slips(target, pushed, yaw_rad):
    primitive = Primitive(*target, CONFIG)
    primitive.update(0.0, 0.0, 0.0, 0.0)
    step = primitive.update(*pushed, yaw_rad, STEP_S)
    assert step.reason == "slip" and step.velocity.is_zero()


def test_an_obstacle_stops_before_it_is_touched():
    primitive = Primitive(0.75, 0.0, CONFIG)
    x_m, now_s, step = 0.0, 0.0, None
    while step is None or step.state is PrimitiveState.RUNNING:
        step = primitive.update(x_m, 0.0, 0.0, now_s, free_ahead_m=0.40 - x_m)
        x_m += step.velocity.forward_m_s * STEP_S
        now_s += STEP_S
    assert step.reason == "obstacle"
    assert 0.1 < x_m <= 0.40 - CONFIG.obstacle_margin_m


def test_a_lidar_that_knows_nothing_stops_a_forward_motion_but_not_a_turn():
    blind = {"free_ahead_m": math.nan}
    assert drive(Primitive(0.5, 0.0, CONFIG), **blind)[0].reason == "obstacle"
    assert drive(Primitive(0.0, 0.5, CONFIG), **blind)[0].state is PrimitiveState.DONE


def test_forward_motion_holds_its_heading():
    step = Primitive(0.5, 0.0, CONFIG)
    step.update(0.0, 0.0, 0.0, 0.0)
    drifted = step.update(0.02, 0.0, 0.1, 0.05)
    assert drifted.velocity.turn_rad_s < 0.0


@pytest.mark.parametrize("pose", [(math.nan, 0.0, 0.0), (0.0, math.inf, 0.0), (0.0, 0.0, math.nan)])
def test_a_pose_that_is_no_number_is_an_error(pose):
    primitive = Primitive(0.5, 0.0, CONFIG)
    primitive.update(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(OdometryError, match="not finite"):
        primitive.update(*pose, 0.05)


def test_a_pose_that_jumps_is_an_error():
    primitive = Primitive(0.5, 0.0, CONFIG)
    primitive.update(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(OdometryError, match="jumped"):
        primitive.update(0.9, 0.0, 0.0, 0.05)


def test_a_clock_that_goes_back_ends_the_motion():
    primitive = Primitive(0.5, 0.0, CONFIG)
    primitive.update(0.0, 0.0, 0.0, 100.0)
    primitive.update(0.01, 0.0, 0.0, 100.05)
    step = primitive.update(0.02, 0.0, 0.0, 3.0)
    assert step.reason == "clock went back" and step.velocity.is_zero()


def test_what_has_ended_stays_ended():
    primitive = Primitive(0.5, 0.0, CONFIG)
    primitive.update(0.0, 0.0, 0.0, 0.0)
    assert primitive.abort("canceled").reason == "canceled"
    later = primitive.update(0.1, 0.0, 0.0, 0.05)
    assert later.reason == "canceled" and later.velocity.is_zero()


def test_abort_before_the_first_pose_is_zero():
    step = Primitive(0.5, 0.0, CONFIG).abort("canceled")
    assert step.velocity.is_zero() and step.forward_m == 0.0


@pytest.mark.parametrize(
    "field, value", [("max_forward_m_s", 0.0), ("acceleration_m_s2", math.nan)]
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        MotionConfig(**{field: value})


@pytest.mark.parametrize("forward_m, turn_rad", [(0.75, 0.0), (0.25, 0.0), (0.0, 0.5)])
def test_what_is_left_is_known_in_seconds(forward_m, turn_rad):
    """Half a second before its end it is told to a tenth: thinking ahead lives on it."""
    primitive, tick_s, now_s = Primitive(forward_m, turn_rad, MotionConfig()), 0.05, 0.0
    along = yaw = 0.0
    told = []
    while True:
        step = primitive.update(along, 0.0, yaw, now_s)
        if step.state is not PrimitiveState.RUNNING:
            break
        told.append((now_s, primitive.remaining()[0]))
        along += step.velocity.forward_m_s * tick_s
        yaw += step.velocity.turn_rad_s * tick_s
        now_s += tick_s
    late = [(now_s - then_s, left_s) for then_s, left_s in told if now_s - then_s < 0.3]
    assert late and all(abs(true_s - left_s) < 0.11 for true_s, left_s in late), late

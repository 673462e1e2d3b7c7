# SPDX-License-Identifier: Apache-2.0
"""Nav2 as the executor: nav2_msgs is in no wheel, so its behaviour server is a stand-in here."""

import math
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from nvila_ros.errors import ConfigError
from nvila_ros.nodes.nav2_motion import ABORTED, CANCELED, SUCCEEDED, Nav2Motion, Nav2Motions
from nvila_ros.primitives import MotionConfig, PrimitiveState

CONFIG = MotionConfig()


def done(value):
    future = Future()
    future.set_result(value)
    return future


class StandInServer:
    """One action of Nav2: what it was asked, and what it answers."""

    def __init__(self, accepts=True, is_ready=True):
        self.accepts, self.is_ready = accepts, is_ready
        self.goals, self.num_cancels, self.result = [], 0, Future()

    def server_is_ready(self):
        return self.is_ready

    def send_goal_async(self, goal):
        self.goals.append(goal)
        return done(self)  # its own goal handle

    @property
    def accepted(self):
        return self.accepts

    def get_result_async(self):
        return self.result

    def cancel_goal_async(self):
        self.num_cancels += 1
        self.finish(CANCELED)

    def finish(self, status, **result):
        if not self.result.done():
            self.result.set_result(SimpleNamespace(status=status, result=SimpleNamespace(**result)))


def action_type():
    def goal():
        return SimpleNamespace(target=SimpleNamespace(x=0.0), time_allowance=SimpleNamespace())

    return SimpleNamespace(Goal=goal)


@pytest.fixture
def nav2():
    servers = {"drive": StandInServer(), "back": StandInServer(), "spin": StandInServer()}
    names = ("DriveOnHeading", "BackUp", "Spin")
    return SimpleNamespace(
        clients=servers, types=SimpleNamespace(**{name: action_type() for name in names})
    )


def test_a_forward_action_is_drive_on_heading(nav2):
    motion, server = Nav2Motion(nav2, 0.75, 0.0, CONFIG), nav2.clients["drive"]
    (goal,) = server.goals
    assert (goal.target.x, goal.speed) == (0.75, CONFIG.max_forward_m_s)
    assert 1 <= goal.time_allowance.sec <= 10
    step = motion.update(0.0, 0.0, 0.0, 0.0)
    assert step.state is PrimitiveState.RUNNING and step.velocity.is_zero()
    server.finish(SUCCEEDED)
    step = motion.update(0.4, 0.0, 0.0, 1.0)
    assert step.state is PrimitiveState.DONE and step.forward_m == pytest.approx(0.4)


def test_a_turn_is_spin_and_backwards_is_back_up(nav2):
    Nav2Motion(nav2, 0.0, -math.pi / 6, CONFIG)
    assert nav2.clients["spin"].goals[0].target_yaw == pytest.approx(-math.pi / 6)
    Nav2Motion(nav2, -0.25, 0.0, CONFIG)
    assert nav2.clients["back"].goals[0].speed < 0.0


def test_what_nav2_says_is_the_reason(nav2):
    motion = Nav2Motion(nav2, 0.75, 0.0, CONFIG)
    nav2.clients["drive"].finish(ABORTED, error_code=723, error_msg="collision ahead")
    step = motion.update(0.0, 0.0, 0.0, 0.0)
    assert step.state is PrimitiveState.FAILED and "723" in step.reason
    assert "collision ahead" in step.reason


def test_aborting_cancels_the_goal(nav2):
    motion = Nav2Motion(nav2, 0.75, 0.0, CONFIG)
    assert motion.abort("paused").reason == "paused"
    assert nav2.clients["drive"].num_cancels == 1


def test_our_own_deadline_cancels_a_goal_that_does_not_end(nav2):
    motion = Nav2Motion(nav2, 0.25, 0.0, CONFIG)
    motion.update(0.0, 0.0, 0.0, 0.0)
    step = motion.update(0.0, 0.0, 0.0, 60.0)
    assert step.state is PrimitiveState.FAILED and step.reason == "timeout"
    assert nav2.clients["drive"].num_cancels == 1


@pytest.mark.parametrize(
    "server, reason",
    [(StandInServer(accepts=False), "refused"), (StandInServer(is_ready=False), "not there")],
)
def test_refused_or_absent(nav2, server, reason):
    nav2.clients["drive"] = server
    step = Nav2Motion(nav2, 0.75, 0.0, CONFIG).update(0.0, 0.0, 0.0, 0.0)
    assert step.state is PrimitiveState.FAILED and reason in step.reason


def test_without_nav2_msgs_the_error_says_what_to_install():
    with pytest.raises(ConfigError, match="nav2-msgs"):
        Nav2Motions(None, "base_link")

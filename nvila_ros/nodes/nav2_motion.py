# SPDX-License-Identifier: Apache-2.0
"""Nav2 drives: one action of the model is one goal for DriveOnHeading, BackUp or Spin.

Nav2's behaviour server checks its local costmap on the way and speaks to cmd_vel itself; our node
then says no velocity. `nav2_msgs` must be installed (Humble, Jazzy, Kilted: the fields used here
are the same in all).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from nvila_ros.errors import ConfigError
from nvila_ros.motion import Motion
from nvila_ros.primitives import MotionConfig, Primitive, PrimitiveState, PrimitiveStep
from nvila_ros.safety import Velocity

SUCCEEDED, CANCELED, ABORTED = 4, 5, 6  # action_msgs/GoalStatus
ACTIONS = {
    "drive": ("DriveOnHeading", "drive_on_heading"),
    "back": ("BackUp", "backup"),
    "spin": ("Spin", "spin"),
}
REFUSED_REASON = "Nav2 refused the goal"


class Nav2Motions:
    """Clients of Nav2's behaviour server, in the node's namespace."""

    def __init__(self, node: Node, base_frame: str) -> None:
        self._base_frame = base_frame
        try:
            self.types = importlib.import_module("nav2_msgs.action")
        except ImportError as error:
            raise ConfigError(
                "executor is 'nav2', but nav2_msgs is not installed; install "
                "ros-$ROS_DISTRO-nav2-msgs, or set executor to 'primitives'"
            ) from error
        self.clients = {
            key: ActionClient(node, getattr(self.types, kind), name)
            for key, (kind, name) in ACTIONS.items()
        }

    def close(self) -> None:
        """Removes the clients."""
        for client in self.clients.values():
            client.destroy()

    def make_motion(self, forward_m: float, turn_rad: float, config: MotionConfig) -> Motion:
        """Begins one motion."""
        return Nav2Motion(self, forward_m, turn_rad, config)


class Nav2Motion:
    """One goal: sent when made, watched on odometry with a deadline, canceled when aborted."""

    def __init__(
        self, nav2: Nav2Motions, forward_m: float, turn_rad: float, config: MotionConfig
    ) -> None:
        # Measures progress, deadline and jumps of odometry; its velocities are nobody's.
        self._measure = Primitive(forward_m, turn_rad, config)
        key = "spin" if turn_rad else ("drive" if forward_m > 0 else "back")
        self._handle: Any = None
        self._end_reason: str | None = None  # '' is success
        self._is_aborted = False
        client = nav2.clients[key]
        if not client.server_is_ready():
            self._end_reason = f"Nav2's {ACTIONS[key][0]} server is not there"
            return
        goal = self._goal(getattr(nav2.types, ACTIONS[key][0]), forward_m, turn_rad, config)
        client.send_goal_async(goal).add_done_callback(self._on_accepted)

    def _goal(self, kind: Any, forward_m: float, turn_rad: float, config: MotionConfig) -> Any:
        goal = kind.Goal()
        if turn_rad:
            goal.target_yaw = float(turn_rad)
        else:
            goal.target.x = float(forward_m)
            goal.speed = math.copysign(config.max_forward_m_s, forward_m)
        seconds = self._measure.deadline_s
        goal.time_allowance.sec = int(seconds)
        goal.time_allowance.nanosec = int((seconds % 1.0) * 1e9)
        return goal

    def reconfigure(self, config: MotionConfig) -> None:
        """The next goal takes it; this one was sent."""

    def update(
        self, x_m: float, y_m: float, yaw_rad: float, now_s: float, free_ahead_m: float = math.inf
    ) -> PrimitiveStep:
        """Where the goal stands; OdometryError when the pose cannot be real."""
        measured = self._measure.update(x_m, y_m, yaw_rad, now_s, free_ahead_m)
        if self._end_reason is not None:
            state = PrimitiveState.FAILED if self._end_reason else PrimitiveState.DONE
            return self._step(measured, state, self._end_reason)
        if measured.state is PrimitiveState.FAILED:
            self._cancel()
            return self._step(measured, PrimitiveState.FAILED, measured.reason)
        return self._step(measured, PrimitiveState.RUNNING, "")

    def remaining(self) -> tuple[float, float, float]:
        """(seconds, metres, radians) that are left."""
        return self._measure.remaining()

    def abort(self, reason: str) -> PrimitiveStep:
        """Cancels the goal, also one that is not accepted yet."""
        self._cancel()
        return self._step(self._measure.abort(reason), PrimitiveState.FAILED, reason)

    @staticmethod
    def _step(measured: PrimitiveStep, state: PrimitiveState, reason: str) -> PrimitiveStep:
        return PrimitiveStep(Velocity.ZERO, state, reason, measured.forward_m, measured.turn_rad)

    def _cancel(self) -> None:
        self._is_aborted = True
        if self._handle is not None and self._end_reason is None:
            self._handle.cancel_goal_async()

    def _on_accepted(self, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self._end_reason = REFUSED_REASON
            return
        self._handle = handle
        if self._is_aborted:
            handle.cancel_goal_async()
        handle.get_result_async().add_done_callback(self._on_result)

    def _on_result(self, future: Any) -> None:
        answer = future.result()
        if answer.status == SUCCEEDED:
            self._end_reason = ""
            return
        code = getattr(answer.result, "error_code", 0)
        message = getattr(answer.result, "error_msg", "")
        self._end_reason = f"Nav2 gave up (status {answer.status}, code {code}) {message}".rstrip()

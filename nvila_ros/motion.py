# SPDX-License-Identifier: Apache-2.0
"""What carries out one action: the package's own primitives, or somebody else's behaviours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from nvila_ros.primitives import MotionConfig, Primitive, PrimitiveStep
from nvila_ros.safety import Pose

PLAN_STEP_M = 0.05  # spacing of a plan's poses
PLAN_STEP_RAD = math.radians(5.0)


class Motion(Protocol):
    """One motion under way."""

    def reconfigure(self, config: MotionConfig) -> None: ...

    def update(
        self, x_m: float, y_m: float, yaw_rad: float, now_s: float, free_ahead_m: float = math.inf
    ) -> PrimitiveStep: ...

    def remaining(self) -> tuple[float, float, float]: ...

    def abort(self, reason: str) -> PrimitiveStep: ...


MakeMotion = Callable[[float, float, MotionConfig], Motion]


def own_motion(forward_m: float, turn_rad: float, config: MotionConfig) -> Motion:
    """The package's own primitive."""
    return Primitive(forward_m, turn_rad, config)


def planned_poses(pose: Pose, forward_m: float, turn_rad: float) -> tuple[Pose, ...]:
    """Where the robot will be on its way, start and end included."""
    num_steps = 1 + math.ceil(max(abs(forward_m) / PLAN_STEP_M, abs(turn_rad) / PLAN_STEP_RAD))
    x_m, y_m, yaw_rad = pose
    poses = []
    for step in range(num_steps + 1):
        share = step / num_steps
        way_m = share * forward_m
        poses.append(
            (
                x_m + way_m * math.cos(yaw_rad),
                y_m + way_m * math.sin(yaw_rad),
                yaw_rad + share * turn_rad,
            )
        )
    return tuple(poses)

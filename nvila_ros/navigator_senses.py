# SPDX-License-Identifier: Apache-2.0
"""What the navigator knows of the world: newest pose, free way, and whether its senses can be used.

Every message is judged before it counts: one that repeats itself, or whose stamp went back, is not
heard, and a sensor that is not heard for its time is silent.
"""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.rolling import Arrivals
from nvila_ros.safety import Pose, SafetyConfig, Watchdog
from nvila_ros.sensor_guard import FrozenPictureGuard, StampGuard


class Senses:
    """Inputs of one navigator; times are the machine's monotonic clock unless they are stamps."""

    def __init__(self, config: SafetyConfig) -> None:
        self.watchdog = Watchdog(config)
        self.pose: Pose | None = None
        self.free_ahead_m = math.inf
        self.image_s = -math.inf  # arrival of the newest image that counted
        self.images, self.odometry = Arrivals(), Arrivals()
        self.num_refused_images = 0
        self.last_problem = ""
        self.num_listeners = 1  # of the commands, as far as anybody told
        self._blocked_reason = ""
        self._image_stamps, self._odometry_stamps = StampGuard("camera"), StampGuard("odometry")
        self._pictures = FrozenPictureGuard()

    @property
    def images_went_back(self) -> bool:
        """Whether the last image was refused because its stamp was before the one before."""
        return self._image_stamps.went_back

    def hear_image(self, rgb: np.ndarray | None, stamp_s: float, now_s: float) -> str:
        """(H, W, 3) uint8 RGB or only its arrival; why it does not count, or ''."""
        self.images.add(now_s, stamp_s)
        problem = self._image_stamps.problem(stamp_s)
        if not problem and rgb is not None and self.pose is not None:
            problem = self._pictures.problem(rgb, self.pose)
        if problem:
            self.num_refused_images += 1
            self.last_problem = problem
            return problem
        self.image_s = now_s
        self.watchdog.hear("image", now_s)
        return ""

    def hear_odometry(self, pose: Pose, now_s: float, stamp_s: float) -> str:
        """A finite pose; why it does not count, or ''."""
        self.odometry.add(now_s, stamp_s)
        problem = self._odometry_stamps.problem(stamp_s)
        if problem:
            self.last_problem = problem
            return problem
        self.pose = pose
        self.watchdog.hear("odometry", now_s)
        return ""

    def hear_scan(self, free_ahead_m: float, now_s: float) -> None:
        """How far the way ahead is free; nan when the lidar knows nothing."""
        self.free_ahead_m = free_ahead_m
        self.watchdog.hear("scan", now_s)

    def problem(self, now_s: float) -> str:
        """Why the robot must hold still, or ''."""
        if self.num_listeners == 0:
            return "nobody listens to cmd_vel"
        return self.watchdog.stale(now_s)

    def hear_blocked(self, reason: str) -> None:
        """Somebody else stops the robot (Nav2's collision monitor); '' when it does not."""
        self._blocked_reason = reason

    def usable_free_ahead_m(self) -> float:
        """What a motion may count on: nothing while somebody else stops the robot."""
        return 0.0 if self._blocked_reason else self.free_ahead_m

# SPDX-License-Identifier: Apache-2.0
"""Sensors that speak but say nothing: repeated stamps, stamps that go back, frozen pictures."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.safety import Pose

# After stamps went back this many messages in order are wanted before the source is trusted again.
NUM_IN_ORDER = 3
# A robot that moved this far sees another picture (sensor noise alone changes some pixel).
SEEN_MOTION_M = 0.10
SEEN_MOTION_RAD = math.radians(10.0)
_STRIDE_PX = 8


class StampGuard:
    """Judges the stamps of one source; zero is no stamp, and is taken as it comes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last_s = 0.0
        self._wanted_in_order = 0
        self.went_back = False  # the last message's stamp, against the one before

    def problem(self, stamp_s: float) -> str:
        """Why this message does not count, or ''."""
        self.went_back = stamp_s != 0.0 and stamp_s < self._last_s
        if stamp_s == 0.0:
            return ""
        last_s, self._last_s = self._last_s, stamp_s
        if stamp_s == last_s:
            return f"the {self._what} repeats the stamp {stamp_s:.3f} s"
        if self.went_back:
            self._wanted_in_order = NUM_IN_ORDER
            return f"the {self._what}'s stamps went back by {last_s - stamp_s:.3f} s"
        if self._wanted_in_order > 0:
            self._wanted_in_order -= 1
            return f"the {self._what}'s stamps went back a moment ago"
        return ""


class FrozenPictureGuard:
    """Sees that a camera shows the same picture although the robot has moved."""

    def __init__(self) -> None:
        self._sample = b""
        self._pose: Pose = (0.0, 0.0, 0.0)

    def problem(self, rgb: np.ndarray, pose: Pose) -> str:
        """(H, W, 3) uint8 picture at a pose; why it does not count, or ''."""
        sample = np.ascontiguousarray(rgb[::_STRIDE_PX, ::_STRIDE_PX]).tobytes()
        if sample != self._sample:
            self._sample, self._pose = sample, pose
            return ""
        moved_m = math.hypot(pose[0] - self._pose[0], pose[1] - self._pose[1])
        turned_rad = abs(math.remainder(pose[2] - self._pose[2], math.tau))
        if moved_m > SEEN_MOTION_M or turned_rad > SEEN_MOTION_RAD:
            return f"the camera shows one picture although the robot moved {moved_m:.2f} m"
        return ""

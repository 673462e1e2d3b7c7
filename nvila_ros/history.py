# SPDX-License-Identifier: Apache-2.0
"""Frame history: keeps camera frames by motion, not by clock, and picks the ones the model sees."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvila_ros.config import HistoryConfig
from nvila_ros.errors import ImageError, OdometryError


@dataclass(slots=True, eq=False)
class Frame:
    """One camera image with the pose it was taken at; `features` is the policy's cache slot."""

    index: int  # ordinal among all frames sampled in this episode, also after thinning
    rgb: np.ndarray  # (H, W, 3) uint8
    x_m: float
    y_m: float
    yaw_rad: float
    stamp_s: float
    features: Any = field(default=None, repr=False)


class FrameHistory:
    """A bounded, motion-sampled store of one episode's frames.

    One frame is kept per `step_m` metres or `step_rad` radians of motion; the first is always kept.
    `select()` repeats NaVILA's choice: seven frames uniform over the whole episode (frame 0 always
    among them), then the current one, black padding (None) at the front of short episodes:

        5 sampled frames:   None None None 0 1 2 3 4
        20 sampled frames:  0 2 5 8 10 13 16 19

    The newest image is always the current one, and what was shown as the current one is kept. Only
    while the robot stands within half a step of the last kept frame does the newest image take that
    frame's place, so that waiting never fills the history with duplicates.
    Above `capacity` the densest place is thinned and `select()` takes the nearest frame left.
    """

    def __init__(self, config: HistoryConfig | None = None) -> None:
        self.config = config or HistoryConfig()
        self._frames: list[Frame] = []
        self._current: Frame | None = None
        self._num_sampled = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def current(self) -> Frame | None:
        """The newest image, or None before the first one."""
        return self._current

    def clear(self) -> None:
        """Forgets the episode."""
        self._frames.clear()
        self._current = None
        self._num_sampled = 0

    def append(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool:
        """Takes the newest (H, W, 3) uint8 image, not copied; True when it became a sample."""
        _check(rgb, (x_m, y_m, yaw_rad))
        frame = Frame(self._num_sampled, rgb, x_m, y_m, yaw_rad, stamp_s)
        self._current = frame
        moved_steps = self._steps_since_last_sample(frame)
        if moved_steps >= self.config.step_tolerance:
            self._sample(frame)
            return True
        if moved_steps < 0.5:
            frame.index = self._frames[-1].index
        return False

    def select(self) -> list[Frame | None]:
        """The `num_frames` frames the model is shown, oldest first; None stands for black."""
        if self._current is None:
            return [None] * self.config.num_frames
        current = self._keep(self._current)
        count = current.index + 1
        size = self.config.num_frames
        past = [frame for frame in self._frames if frame.index < current.index]
        if count <= size:
            return [None] * (size - count) + past + [current]
        wanted = np.linspace(0, count - 1, num=size - 1, endpoint=False, dtype=int)
        indices = np.array([frame.index for frame in past])
        nearest = np.abs(indices[None, :] - wanted[:, None]).argmin(axis=1)
        return [past[position] for position in nearest] + [current]

    def without_features(self) -> list[Frame]:
        """Sampled frames that were never encoded, oldest first; the last may still be replaced."""
        return [frame for frame in self._frames[:-1] if frame.features is None]

    def _sample(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._num_sampled += 1
        self._thin()

    def _keep(self, current: Frame) -> Frame:
        """Makes the current frame the last sample, beside the one before it or in its place."""
        last = self._frames[-1]
        if current is last:
            return current
        if current.index > last.index:
            self._sample(current)
            return current
        # The sample keeps its own pose: a creeping robot must still reach the next step.
        adopted = Frame(last.index, current.rgb, last.x_m, last.y_m, last.yaw_rad, current.stamp_s)
        self._frames[-1] = self._current = adopted
        return adopted

    def _steps_since_last_sample(self, frame: Frame) -> float:
        if not self._frames:
            return math.inf
        last = self._frames[-1]
        distance_m = math.hypot(frame.x_m - last.x_m, frame.y_m - last.y_m)
        turn_rad = math.remainder(frame.yaw_rad - last.yaw_rad, math.tau)
        return max(distance_m / self.config.step_m, abs(turn_rad) / self.config.step_rad)

    def _thin(self) -> None:
        """Drops the frame whose neighbours are closest together, never the first or the last."""
        if len(self._frames) <= self.config.capacity:
            return
        indices = np.array([frame.index for frame in self._frames])
        gaps = indices[2:] - indices[:-2]
        del self._frames[int(gaps.argmin()) + 1]


def _check(rgb: np.ndarray, pose: tuple[float, float, float]) -> None:
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        got = rgb.dtype if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise ImageError(
            f"the image is {got}, expected a uint8 array (H, W, 3): convert it to rgb8"
        )
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(
            f"the image has shape {rgb.shape}, expected (H, W, 3) with H, W above zero"
        )
    if not all(math.isfinite(value) for value in pose):
        raise OdometryError(f"the pose {pose} is not finite: check the odometry source")

# SPDX-License-Identifier: Apache-2.0
"""Drivers: who chooses the motions of a rollout, the model under test or the all-knowing oracle."""

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from nvila_ros.policy import NavigationPolicy
    from nvila_ros.sim.episodes import Episode
    from nvila_ros.sim.grid import OccupancyGrid


class Driver(Protocol):
    """Chooses one of the ten motions from what it has seen."""

    needs_camera: bool

    def start(self, episode: "Episode", grid: "OccupancyGrid", instruction: str) -> None:
        """Begins an episode."""

    def see(self, rgb: np.ndarray | None, pose: np.ndarray, stamp_s: float) -> None:
        """Takes the camera image (None without camera) at `pose` = (x_m, y_m, yaw_rad)."""

    def choose(self) -> tuple[int, float]:
        """Motion index 0..9 and confidence in [0, 1]."""


class ModelDriver:
    """The navigation policy, from images and odometry alone."""

    needs_camera = True

    def __init__(self, policy: "NavigationPolicy") -> None:
        self._policy = policy

    def start(self, episode: "Episode", grid: "OccupancyGrid", instruction: str) -> None:
        self._policy.reset(instruction)

    def see(self, rgb: np.ndarray | None, pose: np.ndarray, stamp_s: float) -> None:
        self._policy.observe(rgb, float(pose[0]), float(pose[1]), float(pose[2]), stamp_s)

    def choose(self) -> tuple[int, float]:
        decision = self._policy.decide()
        return decision.index, decision.confidence


class OracleDriver:
    """The planner's best motion at the true pose: the upper bound, and a check of the loop."""

    needs_camera = False

    def start(self, episode: "Episode", grid: "OccupancyGrid", instruction: str) -> None:
        from nvila_ros.sim.oracle import Planner

        self._planner = Planner(grid, np.array([episode.goal]))

    def see(self, rgb: np.ndarray | None, pose: np.ndarray, stamp_s: float) -> None:
        self._pose = pose

    def choose(self) -> tuple[int, float]:
        return int(self._planner.best(self._pose[None])[0]), 1.0


def timed_choice(driver: Driver) -> tuple[int, float, float]:
    """(motion index, confidence, latency in seconds)."""
    begin_s = time.perf_counter()
    index, confidence = driver.choose()
    return index, confidence, time.perf_counter() - begin_s

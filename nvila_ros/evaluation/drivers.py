# SPDX-License-Identifier: Apache-2.0
"""Drivers: who chooses the motions of a rollout, the model under test or the all-knowing oracle."""

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from nvila_ros.asking_policy import AskingPolicy
    from nvila_ros.mirrored_policy import MirroredPolicy
    from nvila_ros.policy import NavigationPolicy
    from nvila_ros.sim.oracle import Planner


class Driver(Protocol):
    """Chooses one of the ten motions from what it has seen."""

    needs_camera: bool
    probabilities: tuple[float, ...]  # of all ten at the last choice; empty where there are none

    def start(self, instruction: str, planner: "Planner") -> None:
        """Begins an episode; only an oracle may look at the planner."""

    def see(self, rgb: np.ndarray | None, pose: np.ndarray, stamp_s: float) -> None:
        """Takes the camera image (None without camera) at `pose` = (x_m, y_m, yaw_rad)."""

    def choose(self) -> tuple[int, float]:
        """Motion index 0..9 and confidence in [0, 1]."""


class ModelDriver:
    """The navigation policy, from images and odometry alone."""

    needs_camera = True

    def __init__(self, policy: "NavigationPolicy | MirroredPolicy | AskingPolicy") -> None:
        self._policy = policy
        self.probabilities: tuple[float, ...] = ()

    def start(self, instruction: str, planner: "Planner") -> None:
        """Hands over the instruction; the planner is not looked at."""
        self._policy.reset(instruction)

    def see(self, rgb: np.ndarray | None, pose: np.ndarray, stamp_s: float) -> None:
        """Lets the policy observe."""
        assert rgb is not None, "a model needs the camera"
        x_m, y_m, yaw_rad = (float(value) for value in pose)
        self._policy.observe(rgb, x_m, y_m, yaw_rad, stamp_s)

    def choose(self) -> tuple[int, float]:
        """Asks the policy."""
        decision = self._policy.decide()
        self.probabilities = decision.probabilities
        self._policy.tried(decision)  # a rollout carries out whatever is chosen
        return decision.index, decision.confidence


class OracleDriver:
    """The planner's best motion at the true pose: the upper bound, and a check of the loop."""

    needs_camera = False
    probabilities: tuple[float, ...] = ()

    def start(self, instruction: str, planner: "Planner") -> None:
        """Keeps the planner."""
        self._planner = planner

    def see(self, rgb: np.ndarray | None, pose: np.ndarray, stamp_s: float) -> None:
        """Keeps the pose."""
        self._pose = pose

    def choose(self) -> tuple[int, float]:
        """The motion with the lowest cost to go."""
        return int(self._planner.best(self._pose[None])[0]), 1.0

# SPDX-License-Identifier: Apache-2.0
"""The ten motions of the action vocabulary, and what each does to a pose on the floor plan."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nvila_ros.sim.grid import OccupancyGrid

UNIT_FORWARD_M = 0.25
UNIT_TURN_RAD = math.radians(15)
MAX_UNITS = 3
SUBSTEP_M = 0.05  # a blocked forward motion stops at the last free multiple of this


@dataclasses.dataclass(frozen=True)
class Motion:
    """Drive straight by `forward_m` or turn in place by `turn_rad` (left is positive)."""

    forward_m: float
    turn_rad: float

    @property
    def num_units(self) -> int:
        """How many units of 0.25 m or 15 degrees it takes."""
        return round(self.forward_m / UNIT_FORWARD_M + abs(self.turn_rad) / UNIT_TURN_RAD)


# stop, forward 25 50 75 cm, left 15 30 45 degrees, right 15 30 45 degrees
MOTIONS: tuple[Motion, ...] = (
    Motion(0.0, 0.0),
    *(Motion(UNIT_FORWARD_M * count, 0.0) for count in (1, 2, 3)),
    *(Motion(0.0, UNIT_TURN_RAD * count) for count in (1, 2, 3)),
    *(Motion(0.0, -UNIT_TURN_RAD * count) for count in (1, 2, 3)),
)
STOP = 0
FORWARD_M = np.array([motion.forward_m for motion in MOTIONS])
TURN_RAD = np.array([motion.turn_rad for motion in MOTIONS])
NUM_UNITS = np.array([motion.num_units for motion in MOTIONS])


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """Where N robots went. Beyond a row's `num_units` its unit poses repeat the last one."""

    unit_poses: np.ndarray  # (N, 3, 3) pose after each unit: a camera frame belongs to each
    num_units: np.ndarray  # (N,) int: units executed, 0 for stop; a blocked one counts and is last
    collided: np.ndarray  # (N,) bool: the forward motion was cut short

    @property
    def poses(self) -> np.ndarray:
        """(N, 3) pose after the whole motion."""
        return self.unit_poses[:, -1]


def wrap(angle_rad: np.ndarray) -> np.ndarray:
    """Angles into [-pi, pi)."""
    return (np.asarray(angle_rad) + np.pi) % (2 * np.pi) - np.pi


def units(motion: Motion) -> list[Motion]:
    """The unit motions (0.25 m or 15 degrees) that make up a motion; none for stop."""
    if motion.num_units == 0:
        return []
    unit = Motion(motion.forward_m / motion.num_units, motion.turn_rad / motion.num_units)
    return [unit] * motion.num_units


def apply(grid: OccupancyGrid, poses: np.ndarray, motion_indices: np.ndarray) -> Moved:
    """Move N poses (N, 3) by MOTIONS[motion_indices] (N,); they stop before obstacles."""
    poses = np.asarray(poses, dtype=np.float64)
    motion_indices = np.asarray(motion_indices)
    wanted_units = NUM_UNITS[motion_indices]
    forward_m = FORWARD_M[motion_indices]
    possible_m = free_forward(grid, poses)
    travelled_m = np.minimum(forward_m, possible_m)
    collided = travelled_m < forward_m - 1e-9
    executed = np.where(
        collided, np.floor(travelled_m / UNIT_FORWARD_M + 1e-9).astype(int) + 1, wanted_units
    )
    counts = np.minimum(np.arange(1, MAX_UNITS + 1), executed[:, None])  # (N, 3)
    along_m = np.minimum(counts * UNIT_FORWARD_M, travelled_m[:, None])
    turn_rad = np.sign(TURN_RAD[motion_indices])[:, None] * counts * UNIT_TURN_RAD
    yaw_rad = poses[:, None, 2]
    unit_poses = np.stack(
        [
            poses[:, None, 0] + along_m * np.cos(yaw_rad),
            poses[:, None, 1] + along_m * np.sin(yaw_rad),
            wrap(yaw_rad + turn_rad),
        ],
        axis=-1,
    )
    return Moved(unit_poses, executed, collided)


def free_forward(grid: OccupancyGrid, poses: np.ndarray, num_units: int = MAX_UNITS) -> np.ndarray:
    """(N, 3) -> (N,) metres that each pose can drive straight on, up to `num_units` units, by 5 cm.

    A robot that stands inside the inflated zone may leave it: there a step is allowed that does
    not bring it nearer to the obstacle.
    """
    steps_m = np.arange(1, round(num_units * UNIT_FORWARD_M / SUBSTEP_M) + 1) * SUBSTEP_M
    headings = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
    points = poses[:, None, :2] + steps_m[:, None] * headings[:, None, :]  # (N, 15, 2)
    allowed = grid.is_free(points)
    stuck = ~grid.is_free(poses)
    if stuck.any():
        trail = np.concatenate([poses[stuck, None, :2], points[stuck]], axis=1)
        clearance_m = grid.clearance_at(trail)
        was_outside = np.logical_and.accumulate(~grid.is_free(trail), axis=1)[:, :-1]
        leaves = was_outside & (np.diff(clearance_m, axis=1) >= 0) & (clearance_m[:, 1:] > 0)
        allowed[stuck] |= leaves
    return np.logical_and.accumulate(allowed, axis=1).sum(axis=1) * SUBSTEP_M

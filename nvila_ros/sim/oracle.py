# SPDX-License-Identifier: Apache-2.0
"""The teacher: what each of the ten motions costs on the way to a goal, for many robots at once."""

from __future__ import annotations

import numpy as np

from nvila_ros.sim import motion
from nvila_ros.sim.geodesic import distance_fields
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.motion import FORWARD_M, NUM_UNITS, STOP, TURN_RAD, UNIT_FORWARD_M, UNIT_TURN_RAD

# One unit motion (0.25 m or 15 degrees) costs 1; the motion's extra decision costs this much more.
DECISION_COST = 1.0
# Cost to go: the units, and a decision for every three of them, the best the vocabulary can do.
COST_PER_EFFORT_M = 1 / UNIT_FORWARD_M
COST_PER_M = DECISION_COST / 3 / UNIT_FORWARD_M
COST_PER_RAD = (1 + DECISION_COST / 3) / UNIT_TURN_RAD
STOP_RADIUS_M = 0.30  # stopping within it is best

# Paths keep off furniture: the planner's speed at a clearance. Turns come in steps of 15 degrees,
# so a passage with less than 7 cm to spare is for emergencies only.
CLEARANCE_KNOTS_M = np.array([0.22, 0.30, 0.55])
SPEED_KNOTS = np.array([0.15, 0.50, 1.0])
SIGHT_TOLERANCE = 0.10  # a straight line may cost this much more than the path that it replaces
NUM_SIGHT_SAMPLES = 45  # along it, at most 5 cm apart
LOOK_AHEAD_STEPS = np.array([14, 11, 8, 6, 4, 3, 2])  # of 15 cm: candidates for the aim
MIN_AIM_M = 3.0  # a nearer aim is a bend to come, not a point to hit exactly
BLOCKED_SLOWNESS = 20.0

NUM_HEADINGS = 24
TRAPPED_COST = 10.0  # every heading is blocked: the robot cannot leave its cell
NUM_SUBSTEPS = round(motion.MAX_UNITS * UNIT_FORWARD_M / motion.SUBSTEP_M)
STEP_CELLS = 3  # a descent step

# The ten motions on the lattice that is scored: units driven straight on, and heading reached.
POSITION = np.rint(FORWARD_M / UNIT_FORWARD_M).astype(int)
HEADINGS_AFTER = (
    np.rint(TURN_RAD / UNIT_TURN_RAD).astype(int)[:, None] + np.arange(NUM_HEADINGS)
) % NUM_HEADINGS


def _descent_offsets() -> tuple[np.ndarray, np.ndarray]:
    """Cells about 3 away in 16 directions, then the 8 neighbours for the last centimetres."""
    angles = np.arange(16) * 2 * np.pi / 16
    ring = np.rint(STEP_CELLS * np.stack([np.cos(angles), np.sin(angles)], axis=-1)).astype(int)
    near = np.rint(np.stack([np.cos(angles[::2]), np.sin(angles[::2])], axis=-1)).astype(int)
    offsets = np.concatenate([ring, near])
    return offsets, np.hypot(offsets[:, 0], offsets[:, 1])


class Planner:
    """Cost-to-go fields of G goals on one grid.

    Methods take poses (N, 3), or positions (N, 2+), and `goal_index` (N,) that says which goal
    each row is driving to; without it row i belongs to goal i. Positions may lie anywhere: those
    outside the free cells are treated as if at the nearest free one.
    """

    def __init__(self, grid: OccupancyGrid, goals: np.ndarray) -> None:
        self.grid = grid
        self.goals = grid.snap(np.asarray(goals, dtype=np.float64).reshape(-1, 2))
        # Robots that share a goal's cell share its fields.
        cells, field_index = np.unique(grid.cell(self.goals), axis=0, return_inverse=True)
        self._field_index = field_index.ravel()
        speed = np.interp(grid.clearance_m, CLEARANCE_KNOTS_M, SPEED_KNOTS)
        self._slowness = np.where(grid.free, 1 / speed, BLOCKED_SLOWNESS).ravel()
        self._distance_m = distance_fields(grid.free, cells, grid.resolution_m)
        self._effort_m = distance_fields(grid.free, cells, grid.resolution_m, speed)
        offsets, lengths = _descent_offsets()
        self._offsets = offsets[:, 0] * grid.shape[1] + offsets[:, 1]
        # Less than one per metre: among equally steep steps the longer one is taken.
        self._offset_cost = (0.9 * grid.resolution_m * lengths).astype(np.float32)

    def distance_m(self, poses: np.ndarray, goal_index: np.ndarray | None = None) -> np.ndarray:
        """(N, 2+) -> (N,) geodesic distance to the goal; inf where it cannot be reached."""
        poses = np.asarray(poses, dtype=np.float64)
        return self._interpolate(
            self._distance_m, poses[:, :2], self._goal_index(poses, goal_index)
        )

    def best(self, poses: np.ndarray, goal_index: np.ndarray | None = None) -> np.ndarray:
        """(N, 3) -> (N,) index of the cheapest motion."""
        return self.action_costs(poses, goal_index).argmin(axis=-1)

    def action_costs(self, poses: np.ndarray, goal_index: np.ndarray | None = None) -> np.ndarray:
        """(N, 3) -> (N, 10) cost of taking each motion and then driving to the goal.

        The unit is one unit motion. A motion that an obstacle would cut short costs inf. Stopping
        is cheap within 0.3 m of the goal, worse up to 1 m, and clearly bad beyond. All motions are
        judged by one aim, the farthest point down the path that can be driven to straight: an aim
        per motion would charge driving on for the bends it reveals, and the robot would dither.
        """
        poses = np.asarray(poses, dtype=np.float64)
        goal = self._goal_index(poses, goal_index)
        ahead_m = np.arange(motion.MAX_UNITS + 1) * UNIT_FORWARD_M
        direction = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
        points = poses[:, None, :2] + ahead_m[:, None] * direction[:, None, :]  # (N, 4, 2)
        flat_points, flat_goal = points.reshape(-1, 2), np.repeat(goal, len(ahead_m))
        effort_m = self._interpolate(self._effort_m, flat_points, flat_goal, 1 / SPEED_KNOTS[0])
        distance_m = self._interpolate(self._distance_m, flat_points, flat_goal)
        effort_m = effort_m.reshape(-1, len(ahead_m))[:, POSITION]
        distance_m = distance_m.reshape(-1, len(ahead_m))[:, POSITION]

        aim = self._aim(poses, goal) - poses[:, :2]
        aim_m = np.hypot(aim[:, 0], aim[:, 1])
        error_rad = motion.wrap(np.arctan2(aim[:, 1], aim[:, 0]) - poses[:, 2])
        error_rad[aim_m < 2 * self.grid.resolution_m] = 0.0
        turning = _turning_cost(error_rad, self._blocked_headings(poses))
        drift_rad = np.abs(error_rad)[:, None] * FORWARD_M / np.maximum(aim_m, MIN_AIM_M)[:, None]

        go_on = COST_PER_EFFORT_M * effort_m + COST_PER_M * distance_m
        go_on += turning + COST_PER_RAD * drift_rad + stop_cost(0.0)
        stop_now = stop_cost(distance_m)
        costs = self._motion_cost(poses) + np.minimum(go_on, stop_now)
        costs[:, STOP] = stop_now[:, STOP]
        costs[motion.free_forward(self.grid, poses)[:, None] < FORWARD_M - 1e-9] = np.inf
        return costs

    def trace(
        self, positions: np.ndarray, num_steps: int, goal_index: np.ndarray | None = None
    ) -> np.ndarray:
        """(N, 2+) -> (N, num_steps + 1, 2): steepest descent to the goal in steps of about 15 cm.

        A row that has arrived repeats the goal.
        """
        return self._descend(positions, num_steps, self._goal_index(positions, goal_index))[0]

    def _descend(
        self, positions: np.ndarray, num_steps: int, goal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, num_steps + 1, 2) of the trace, and the effort (N, num_steps + 1) at each."""
        cells = self.grid.nearest_free.ravel()[self.grid.flat(positions)]
        base = self._field_index[goal] * self.grid.free.size
        trail = np.empty((len(cells), num_steps + 1), dtype=np.int64)
        trail[:, 0] = cells
        field, rows = self._effort_m.ravel(), np.arange(len(cells))
        for step in range(1, num_steps + 1):
            options = cells[:, None] + self._offsets  # (N, 24)
            there = field[base[:, None] + options]
            choice = (there + self._offset_cost).argmin(axis=1)
            improves = there[rows, choice] < field[base + cells]
            cells = np.where(improves, options[rows, choice], cells)
            trail[:, step] = cells
        points = self.grid.centre(np.stack(np.divmod(trail, self.grid.shape[1]), axis=-1))
        effort = field[base[:, None] + trail]
        arrived = effort < self.grid.resolution_m / 2
        return np.where(arrived[..., None], self.goals[goal][:, None], points), effort

    def _goal_index(self, poses: np.ndarray, goal_index: np.ndarray | None) -> np.ndarray:
        if goal_index is not None:
            return np.asarray(goal_index)
        if len(poses) != len(self.goals):
            raise ValueError(f"{len(poses)} poses for {len(self.goals)} goals: pass goal_index")
        return np.arange(len(self.goals))

    def _interpolate(
        self, field: np.ndarray, points: np.ndarray, goal: np.ndarray, slowness: float = 1.0
    ) -> np.ndarray:
        """Bilinear; a cell that is not free counts as its nearest free one plus the way there."""
        grid = self.grid
        scaled = (points - grid.origin_m) / grid.resolution_m - 0.5
        lower = np.clip(np.floor(scaled).astype(int), 0, np.array(grid.shape) - 2)
        part = np.clip(scaled - lower, 0, 1)
        corner = lower[:, 0] * grid.shape[1] + lower[:, 1]
        corners = corner[:, None] + np.array([0, 1, grid.shape[1], grid.shape[1] + 1])
        base = self._field_index[goal][:, None] * grid.free.size
        values = field.ravel()[base + grid.nearest_free.ravel()[corners]]
        values = values + slowness * grid.to_free_m.ravel()[corners]
        x, y = part[:, 0], part[:, 1]
        weights = np.stack([(1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y], axis=-1)
        return (values * weights).sum(axis=-1)

    def _aim(self, poses: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """(N, 2+) -> (N, 2): farthest point of the path for which driving straight is as good."""
        trail, effort = self._descend(poses, LOOK_AHEAD_STEPS[0], goal)
        candidates = trail[:, LOOK_AHEAD_STEPS]  # (N, K, 2)
        saved_m = effort[:, :1] - effort[:, LOOK_AHEAD_STEPS]
        steps = np.linspace(0, 1, NUM_SIGHT_SAMPLES)[:, None]
        line = trail[:, :1, None] + steps * (candidates - trail[:, :1])[:, :, None]
        slowness = self._slowness[self.grid.flat(line)].mean(axis=-1)
        length_m = np.linalg.norm(candidates - trail[:, :1], axis=-1)
        in_sight = slowness * length_m <= (1 + SIGHT_TOLERANCE) * saved_m + self.grid.resolution_m
        in_sight[:, -1] = True
        return candidates[np.arange(len(poses)), in_sight.argmax(axis=1)]

    def _blocked_headings(self, poses: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 24) bool: no 0.25 m straight ahead at yaw + 15 degrees * k."""
        turned = np.repeat(poses[:, None], NUM_HEADINGS, axis=1)
        turned[..., 2] += np.arange(NUM_HEADINGS) * UNIT_TURN_RAD
        possible_m = motion.free_forward(self.grid, turned.reshape(-1, 3), num_units=1)
        return possible_m.reshape(turned.shape[:2]) < UNIT_FORWARD_M - 1e-9

    def _motion_cost(self, poses: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 10): units and decision; a forward unit counts more where it is tight."""
        substeps_m = (np.arange(NUM_SUBSTEPS) + 0.5) * motion.SUBSTEP_M
        direction = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
        points = poses[:, None, :2] + substeps_m[:, None] * direction[:, None, :]
        slowness = np.minimum(self._slowness[self.grid.flat(points)], 1 / SPEED_KNOTS[0])
        mean = np.cumsum(slowness, axis=1) / np.arange(1, NUM_SUBSTEPS + 1)
        costs = np.broadcast_to(NUM_UNITS, (len(poses), len(NUM_UNITS))).astype(np.float64)
        costs[:, 1:4] *= mean[:, NUM_SUBSTEPS // 3 - 1 :: NUM_SUBSTEPS // 3]
        return costs + DECISION_COST


def stop_cost(distance_m: np.ndarray | float) -> np.ndarray:
    """Cost of stopping at a geodesic distance: a decision, plus what is missing, ever steeper."""
    missing_m = np.maximum(np.asarray(distance_m, dtype=np.float64) - STOP_RADIUS_M, 0)
    return DECISION_COST + distance_m + 45 * missing_m + 60 * missing_m**2


def _turning_cost(error_rad: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """(N,) bearing error and (N, 24) blocked headings -> (N, 10) turning left after each motion.

    Turning to heading k and correcting what remains costs the same for every k on the way, so only
    a blocked aim, which needs a detour, costs more than the error itself.
    """
    steps = np.arange(NUM_HEADINGS)
    away_rad = np.minimum(steps, NUM_HEADINGS - steps) * UNIT_TURN_RAD
    rest_rad = np.abs(motion.wrap(error_rad[:, None] - steps * UNIT_TURN_RAD))  # (N, 24)
    rest = COST_PER_RAD * rest_rad + TRAPPED_COST * blocked
    return (COST_PER_RAD * away_rad + rest[:, HEADINGS_AFTER]).min(axis=-1)

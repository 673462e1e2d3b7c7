# SPDX-License-Identifier: Apache-2.0
"""Goals of an apartment and routes to them that an episode may take; without words yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import unique_furniture
from nvila_ros.sim.motion import wrap
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.route import Route
from nvila_ros.sim.scene import CATEGORIES, Furniture, Scene

GOAL_DISTANCE_M = 0.70  # from the goal's face to the robot's centre
GOAL_BEARING_RAD = np.radians(50)  # of the goal's piece from the last metre of the path
MIN_CLEARANCE_M = 0.30  # at the start and at the goal
MIN_PATH_CLEARANCE_M = 0.27  # turns come in steps of 15 degrees: tighter ways are not asked for
MIN_GEODESIC_M, MAX_GEODESIC_M = 3.0, 12.0
MAX_GOALS = 14  # distance fields are what costs: the episodes of a batch share goals
TRACE_STEPS = 130


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """An episode without words."""

    start: np.ndarray  # (3,)
    goal: np.ndarray  # (2,)
    furniture: Furniture
    geodesic_m: float
    route: Route


@dataclasses.dataclass(frozen=True, eq=False)
class Goal:
    """A piece with a name of its own and the places before its sides where a robot may stop."""

    furniture: Furniture
    places: np.ndarray  # (S, 2), S >= 1


def choose_goals(scene: Scene, grid: OccupancyGrid, rng: np.random.Generator) -> list[Goal]:
    """Pieces in random order, as many as `MAX_GOALS` places allow.

    A piece at a wall is met from its front; one that stands free, or in a corner, from any side.
    """
    found, num_places = [], 0
    pieces = unique_furniture(scene)
    for index in rng.permutation(len(pieces)):
        places = _places(scene, grid, pieces[index])
        if len(places) and num_places + len(places) <= MAX_GOALS:
            found.append(Goal(pieces[index], np.array(places)))
            num_places += len(places)
    return found


def _places(scene: Scene, grid: OccupancyGrid, piece: Furniture) -> list[np.ndarray]:
    """The places before a piece's sides that a robot can stand on, in the piece's room."""
    sides = 1 if CATEGORIES[piece.category].placement == "wall" else 4
    places = []
    for side in range(sides if piece.solid else 0):
        reach_m = (piece.width_m if side % 2 else piece.depth_m) / 2 + GOAL_DISTANCE_M
        yaw_rad = piece.yaw_rad + side * np.pi / 2
        offset = reach_m * np.array([np.cos(yaw_rad), np.sin(yaw_rad)])
        point = np.array([piece.x_m, piece.y_m]) + offset
        if (
            grid.is_free(point)
            and grid.clearance_at(point) >= MIN_CLEARANCE_M
            and _room_id(scene, point) == piece.room_id
        ):
            places.append(point)
    return places


def _room_id(scene: Scene, point: np.ndarray) -> int | None:
    room = scene.room_at(float(point[0]), float(point[1]))
    return None if room is None else room.id


def random_drafts(
    scene: Scene,
    planner: Planner,
    goals: list[Goal],
    rng: np.random.Generator,
    count: int,
) -> list[Draft]:
    """Up to `count` routes from random starts to random goals."""
    grid = planner.grid
    roomy = np.argwhere(grid.free & (grid.clearance_m >= MIN_CLEARANCE_M))
    num_tried = 4 * count + 8
    starts = grid.centre(roomy[rng.integers(len(roomy), size=num_tried)])
    chosen = rng.integers(len(goals), size=num_tried)

    def yaw_rad(index: int) -> float:
        return rng.uniform(-np.pi, np.pi)

    return [draft for _, draft in _drafts(scene, planner, goals, starts, chosen, yaw_rad)][:count]


def drafts_from(
    scene: Scene, planner: Planner, goals: list[Goal], poses: np.ndarray, chosen: np.ndarray
) -> list[tuple[int, Draft]]:
    """Routes from poses (N, 3) to goals `chosen` (N,), by the rules of `random_drafts`.

    Rows without a route that an episode may take are left out: each draft comes with its row.
    """
    return _drafts(scene, planner, goals, poses[:, :2], chosen, lambda row: poses[row, 2])


def _drafts(
    scene: Scene,
    planner: Planner,
    goals: list[Goal],
    starts: np.ndarray,
    chosen: np.ndarray,
    yaw_rad: Callable[[int], float],
) -> list[tuple[int, Draft]]:
    """(N, 2) starts, (N,) goals -> those with a passable path of the right length, and their rows.

    Of a piece's sides the nearest from the start is the goal: the instruction names the piece
    alone, so the side must be the one that a robot which comes from there meets first.
    """
    place_index, geodesic_m = _nearest_places(planner, goals, starts, chosen)
    kept = np.flatnonzero((geodesic_m >= MIN_GEODESIC_M) & (geodesic_m <= MAX_GEODESIC_M))
    trails = planner.trace(starts[kept], TRACE_STEPS, place_index[kept])
    wide = planner.grid.clearance_at(trails).min(axis=1) >= MIN_PATH_CLEARANCE_M
    places = planner.goals[place_index]
    arrived = np.linalg.norm(trails[:, -1] - places[kept], axis=-1) < 0.1
    drafts = []
    for row in np.flatnonzero(wide & arrived):
        index = int(kept[row])
        piece = goals[chosen[index]].furniture
        start = np.array([*starts[index], yaw_rad(index)])
        route = Route.from_path(scene, _smooth(trails[row]))
        if _faces_goal(route, piece):
            draft = Draft(start, places[index], piece, float(geodesic_m[index]), route)
            drafts.append((index, draft))
    return drafts


def _nearest_places(
    planner: Planner, goals: list[Goal], starts: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) starts, (N,) goals -> (N,) nearest of the goal's places, (N,) metres to drive there.

    Places are numbered in the order of the goals, as the planner's are.
    """
    num_places = np.array([len(goal.places) for goal in goals])
    first = np.cumsum(num_places) - num_places
    distance_m = np.full((len(starts), num_places.max()), np.inf)
    for side in range(num_places.max()):
        rows = np.flatnonzero(num_places[chosen] > side)
        distance_m[rows, side] = planner.distance_m(starts[rows], first[chosen[rows]] + side)
    nearest = distance_m.argmin(axis=1)
    return first[chosen] + nearest, distance_m[np.arange(len(starts)), nearest]


def _faces_goal(route: Route, piece: Furniture) -> bool:
    """The goal's piece lies in front of a robot on its last metre: it sees why it stops."""
    before_m = route.length_m - 0.9
    offset = np.array([piece.x_m, piece.y_m]) - route.at(before_m)
    heading_rad = route.direction_rad(before_m, route.length_m)
    return abs(wrap(np.arctan2(offset[1], offset[0]) - heading_rad)) < GOAL_BEARING_RAD


def _smooth(trail: np.ndarray) -> np.ndarray:
    """Round off the eight or sixteen directions of a descent; the ends stay."""
    length = 1 + int(np.flatnonzero(np.any(np.diff(trail, axis=0) != 0, axis=1))[-1]) + 1
    smooth = ndimage.gaussian_filter1d(trail[:length], sigma=1.5, axis=0, mode="nearest")
    smooth[[0, -1]] = trail[[0, length - 1]]
    return smooth

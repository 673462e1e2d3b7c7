# SPDX-License-Identifier: Apache-2.0
"""Episodes: an apartment, a start, a goal, the way and its instruction; drawn, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from nvila_ros.errors import SceneError
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import Clause, Sightings, compose, describe, unique_furniture
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.motion import wrap
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.route import Route
from nvila_ros.sim.scene import CATEGORIES, Furniture, Scene

# Poses (N, 3) -> for each the landmarks in view, key -> share of the picture's pixels.
Visible = Callable[[np.ndarray], Sequence[dict[str, float]]]

GOAL_DISTANCE_M = 0.70  # from the goal's face to the robot's centre
GOAL_BEARING_RAD = np.radians(50)  # of the goal's piece from the last metre of the path
MIN_CLEARANCE_M = 0.30  # at the start and at the goal
MIN_PATH_CLEARANCE_M = 0.27  # turns come in steps of 15 degrees: tighter ways are not asked for
MIN_GEODESIC_M, MAX_GEODESIC_M = 3.0, 12.0
MAX_GOALS = 14  # distance fields are what costs: the episodes of a batch share goals
NUM_ROUNDS = 6
TRACE_STEPS = 130
PATH_SPACING_M = 0.25
FILE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Episode:
    """One task: drive from `start` until 1 m from `goal` as the instruction says, then stop."""

    seed: int
    scene: Scene
    start: tuple[float, float, float]  # x_m, y_m, yaw_rad
    goal: tuple[float, float]  # x_m, y_m
    goal_furniture_id: int
    geodesic_m: float  # shortest way from start to goal
    path: tuple[tuple[float, float], ...]  # the planned way: it keeps off obstacles
    instruction: str
    clauses: tuple[Clause, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["scene"] = self.scene.to_json()
        data["clauses"] = [dataclasses.asdict(clause) for clause in self.clauses]
        return json.loads(json.dumps(data))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Episode:
        """The inverse of `to_json`; raises SceneError on anything malformed."""
        try:
            return cls(
                seed=int(data["seed"]),
                scene=Scene.from_json(data["scene"]),
                start=_numbers(data["start"], 3),
                goal=_numbers(data["goal"], 2),
                goal_furniture_id=int(data["goal_furniture_id"]),
                geodesic_m=float(data["geodesic_m"]),
                path=tuple(_numbers(point, 2) for point in data["path"]),
                instruction=str(data["instruction"]),
                clauses=tuple(Clause(**clause) for clause in data["clauses"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SceneError(
                f"malformed episode: {error!r}; write episodes with save_episodes"
            ) from error


def generate_batch(
    scene: Scene, grid: OccupancyGrid, visible: Visible, rng: np.random.Generator, count: int
) -> list[Episode]:
    """Up to `count` episodes in one scene; fewer only where the scene has no more to offer."""
    goals = _goals(scene, grid, rng)
    if not goals:
        return []
    planner = Planner(grid, np.concatenate([goal.places for goal in goals]))
    episodes: list[Episode] = []
    for _ in range(NUM_ROUNDS):
        missing = count - len(episodes)
        if missing <= 0:
            break
        drafts = _drafts(scene, planner, goals, rng, missing + 2)
        cameras = [draft.route.camera_poses() for draft in drafts]
        if not cameras:
            continue
        seen = list(visible(np.concatenate([poses for _, poses in cameras])))
        for draft, (arc_m, poses) in zip(drafts, cameras, strict=True):
            shares, seen = seen[: len(poses)], seen[len(poses) :]
            episode = draft.finish(scene, Sightings(arc_m, shares), rng)
            if episode is not None:
                episodes.append(episode)
    return episodes[:count]


def generate_episode(
    scene: Scene, grid: OccupancyGrid, rng: np.random.Generator, visible: Visible
) -> Episode | None:
    """One episode, or None where the scene offers none."""
    return next(iter(generate_batch(scene, grid, visible, rng, 1)), None)


def episode_from_seed(seed: int) -> Episode:
    """The episode of a seed: its apartment has the same seed."""
    from nvila_ros.sim.renderer import Renderer  # needs OpenGL, which files of episodes do not
    from nvila_ros.sim.world import World

    scene = generate_scene(seed)
    grid = OccupancyGrid.from_scene(scene)
    with Renderer(World(scene), 128, 128, batch=16) as renderer:
        episode = generate_episode(scene, grid, np.random.default_rng([seed, 3]), renderer.visible)
    if episode is None:
        raise SceneError(
            f"the apartment of seed {seed} has no route to describe; take another seed"
        )
    return episode


def save_episodes(path: str | Path, episodes: Sequence[Episode]) -> None:
    """Write a JSON file that holds everything, scene layouts included."""
    data = {"format": FILE_FORMAT, "episodes": [episode.to_json() for episode in episodes]}
    Path(path).write_text(json.dumps(data) + "\n", encoding="utf-8")


def load_episodes(path: str | Path) -> list[Episode]:
    """Read what `save_episodes` wrote; raises SceneError on anything else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SceneError(f"cannot read episodes from {path}: {error.strerror}") from error
    except ValueError as error:
        raise SceneError(f"{path} is not a JSON file of episodes: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FILE_FORMAT:
        raise SceneError(f"{path} is not a file of episodes, format {FILE_FORMAT}")
    return [Episode.from_json(item) for item in data["episodes"]]


@dataclasses.dataclass(frozen=True, eq=False)
class _Draft:
    """An episode without words."""

    start: np.ndarray  # (3,)
    goal: np.ndarray  # (2,)
    furniture: Furniture
    geodesic_m: float
    route: Route

    def finish(
        self, scene: Scene, sightings: Sightings, rng: np.random.Generator
    ) -> Episode | None:
        """Describe the route; None where what is seen on it does not allow that."""
        clauses = describe(self.route, float(self.start[2]), self.furniture, sightings, rng)
        if clauses is None:
            return None
        count = max(2, round(self.route.length_m / PATH_SPACING_M) + 1)
        path = self.route.at(np.linspace(0, self.route.length_m, count))
        return Episode(
            seed=scene.seed,
            scene=scene,
            start=_numbers(self.start, 3),
            goal=_numbers(self.goal, 2),
            goal_furniture_id=self.furniture.id,
            geodesic_m=round(self.geodesic_m, 4),
            path=tuple(_numbers(point, 2) for point in path),
            instruction=compose(clauses, rng),
            clauses=tuple(clauses),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Goal:
    """A piece with a name of its own and the places before its sides where a robot may stop."""

    furniture: Furniture
    places: np.ndarray  # (S, 2), S >= 1


def _goals(scene: Scene, grid: OccupancyGrid, rng: np.random.Generator) -> list[_Goal]:
    """Pieces in random order, as many as `MAX_GOALS` places allow.

    A piece at a wall is met from its front; one that stands free, or in a corner, from any side.
    """
    found, num_places = [], 0
    pieces = unique_furniture(scene)
    for index in rng.permutation(len(pieces)):
        places = _places(scene, grid, pieces[index])
        if len(places) and num_places + len(places) <= MAX_GOALS:
            found.append(_Goal(pieces[index], np.array(places)))
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


def _drafts(
    scene: Scene,
    planner: Planner,
    goals: list[_Goal],
    rng: np.random.Generator,
    count: int,
) -> list[_Draft]:
    """Up to `count` routes from random starts, each with a passable path of the right length.

    Of a piece's sides the nearest from the start is the goal: the instruction names the piece
    alone, so the side must be the one that a robot which comes from there meets first.
    """
    grid = planner.grid
    roomy = np.argwhere(grid.free & (grid.clearance_m >= MIN_CLEARANCE_M))
    num_tried = 4 * count + 8
    starts = grid.centre(roomy[rng.integers(len(roomy), size=num_tried)])
    chosen = rng.integers(len(goals), size=num_tried)
    place_index, geodesic_m = _nearest_places(planner, goals, starts, chosen)
    kept = np.flatnonzero((geodesic_m >= MIN_GEODESIC_M) & (geodesic_m <= MAX_GEODESIC_M))
    trails = planner.trace(starts[kept], TRACE_STEPS, place_index[kept])
    wide = grid.clearance_at(trails).min(axis=1) >= MIN_PATH_CLEARANCE_M
    places = planner.goals[place_index]
    arrived = np.linalg.norm(trails[:, -1] - places[kept], axis=-1) < 0.1
    drafts = []
    for row in np.flatnonzero(wide & arrived):
        index = kept[row]
        piece = goals[chosen[index]].furniture
        start = np.array([*starts[index], rng.uniform(-np.pi, np.pi)])
        route = Route.from_path(scene, _smooth(trails[row]))
        if _faces_goal(route, piece):
            drafts.append(_Draft(start, places[index], piece, float(geodesic_m[index]), route))
    return drafts[:count]


def _nearest_places(
    planner: Planner, goals: list[_Goal], starts: np.ndarray, chosen: np.ndarray
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


def _numbers(values: Any, count: int) -> Any:
    numbers = tuple(round(float(value), 5) for value in values)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers, got {values!r}")
    return numbers

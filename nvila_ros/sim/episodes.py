# SPDX-License-Identifier: Apache-2.0
"""Episodes: an apartment, a start, a goal, the way and its instruction; drawn, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import SceneError
from nvila_ros.sim.drafts import Draft, choose_goals, random_drafts
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import Clause, Sightings, compose, describe
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.scene import Scene

# Poses (N, 3) -> for each the landmarks in view, key -> share of the picture's pixels.
Visible = Callable[[np.ndarray], Sequence[dict[str, float]]]

NUM_ROUNDS = 6
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


class EpisodeMaker:
    """Episodes in one scene; they share its goals and the planner of the places before them."""

    def __init__(
        self, scene: Scene, grid: OccupancyGrid, visible: Visible, rng: np.random.Generator
    ) -> None:
        self.scene, self._visible, self._rng = scene, visible, rng
        self.goals = choose_goals(scene, grid, rng)
        places = [goal.places for goal in self.goals]
        self.planner = Planner(grid, np.concatenate(places)) if places else None

    def batch(self, count: int) -> list[Episode]:
        """Up to `count` episodes; fewer only where the scene has no more to offer."""
        episodes: list[Episode] = []
        for _ in range(NUM_ROUNDS):
            missing = count - len(episodes)
            if self.planner is None or missing <= 0:
                break
            drafts = random_drafts(self.scene, self.planner, self.goals, self._rng, missing + 2)
            told = self.tell(drafts, self._visible, self._rng)
            episodes += [episode for episode in told if episode is not None]
        return episodes[:count]

    def tell(
        self, drafts: Sequence[Draft], visible: Visible, rng: np.random.Generator
    ) -> list[Episode | None]:
        """Each draft with its instruction, or None where words would not be enough."""
        cameras = [draft.route.camera_poses() for draft in drafts]
        if not cameras:
            return []
        seen = list(visible(np.concatenate([poses for _, poses in cameras])))
        episodes = []
        for draft, (arc_m, poses) in zip(drafts, cameras, strict=True):
            shares, seen = seen[: len(poses)], seen[len(poses) :]
            episodes.append(_finish(self.scene, draft, Sightings(arc_m, shares), rng))
        return episodes


def generate_batch(
    scene: Scene, grid: OccupancyGrid, visible: Visible, rng: np.random.Generator, count: int
) -> list[Episode]:
    """Up to `count` episodes in one scene; fewer only where the scene has no more to offer."""
    return EpisodeMaker(scene, grid, visible, rng).batch(count)


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


def _finish(
    scene: Scene, draft: Draft, sightings: Sightings, rng: np.random.Generator
) -> Episode | None:
    """Describe the route; None where what is seen on it does not allow that."""
    clauses = describe(draft.route, float(draft.start[2]), draft.furniture, sightings, rng)
    if clauses is None:
        return None
    count = max(2, round(draft.route.length_m / PATH_SPACING_M) + 1)
    path = draft.route.at(np.linspace(0, draft.route.length_m, count))
    return Episode(
        seed=scene.seed,
        scene=scene,
        start=_numbers(draft.start, 3),
        goal=_numbers(draft.goal, 2),
        goal_furniture_id=draft.furniture.id,
        geodesic_m=round(draft.geodesic_m, 4),
        path=tuple(_numbers(point, 2) for point in path),
        instruction=compose(clauses, rng),
        clauses=tuple(clauses),
    )


def _numbers(values: Any, count: int) -> Any:
    numbers = tuple(round(float(value), 5) for value in values)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers, got {values!r}")
    return numbers

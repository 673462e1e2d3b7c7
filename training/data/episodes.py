# SPDX-License-Identifier: Apache-2.0
"""Navigation samples from the embedded simulator: the oracle drives, each decision is a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.errors import ConfigError
from nvila_ros.sim import motion
from nvila_ros.sim.episodes import Episode, episode_from_seed
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.oracle import Planner
from nvila_ros.training.data.sample import Sample, Turn


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings:
    """How the oracle drives and what is kept of it."""

    side_px: int = 224  # of the square pictures
    noise: float = 0.1  # share of decisions that are carried out at random; labels stay true
    max_decisions: int = 60
    source: str = "simulator"

    def __post_init__(self) -> None:
        if self.side_px < 16 or not 0 <= self.noise < 1 or self.max_decisions < 1:
            raise ConfigError(
                f"side_px {self.side_px}, noise {self.noise}, max_decisions {self.max_decisions}; "
                "at least 16, a share below 1 and at least 1 are expected"
            )


def episode_samples(seed: int, settings: EpisodeSettings | None = None) -> list[Sample]:
    """The decisions of one episode; they share frames and are one group."""
    settings = settings or EpisodeSettings()
    episode = episode_from_seed(seed)
    poses, decided = _drive(episode, np.random.default_rng([seed, 16]), settings)
    frames = _pictures(episode, poses, settings.side_px)
    return [
        Sample(
            key=f"{seed}/{place}",
            source=settings.source,
            kind="navigation",
            frames=frames[: place + 1],
            turns=(Turn(user=episode.instruction, answer=ACTIONS[index].sentence),),
            group=str(seed),
        )
        for place, index in decided
    ]


def _drive(
    episode: Episode, rng: np.random.Generator, settings: EpisodeSettings
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Poses (N, 3) of every frame, and (number of the current frame, best action) per decision."""
    grid = OccupancyGrid.from_scene(episode.scene)
    planner = Planner(grid, np.array([episode.goal]))
    poses = [np.asarray(episode.start, dtype=np.float64)]
    decided: list[tuple[int, int]] = []
    for _ in range(settings.max_decisions):
        best = int(planner.best(poses[-1][None])[0])
        decided.append((len(poses) - 1, best))
        if best == motion.STOP:
            break
        done = int(rng.integers(1, len(ACTIONS))) if rng.random() < settings.noise else best
        moved = motion.apply(grid, poses[-1][None], np.array([done]))
        poses.extend(moved.unit_poses[0, : moved.num_units[0]])
    return np.stack(poses), decided


def _pictures(episode: Episode, poses: np.ndarray, side_px: int) -> tuple[np.ndarray, ...]:
    from nvila_ros.sim.renderer import Renderer  # needs OpenGL
    from nvila_ros.sim.world import World

    with Renderer(World(episode.scene), side_px, side_px, batch=16) as renderer:
        return tuple(np.ascontiguousarray(frame) for frame in renderer.render_batch(poses))

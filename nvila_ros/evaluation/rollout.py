# SPDX-License-Identifier: Apache-2.0
"""Rollout: one episode in closed loop without ROS, frames in, motions out, judged at the end."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from nvila_ros.config import EvaluationConfig
from nvila_ros.evaluation.drivers import Driver
from nvila_ros.evaluation.metrics import EpisodeMetrics, episode_metrics, resample
from nvila_ros.sim import motion
from nvila_ros.sim.episodes import Episode
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.oracle import Planner

# none: as trained. blind: black frames. deaf: another episode's instruction.
Control = Literal["none", "blind", "deaf"]
CONTROLS: tuple[str, ...] = ("none", "blind", "deaf")

# One unit motion lasts half a second at 0.5 m/s and 30 degrees per second.
UNIT_DURATION_S = 0.5
# Side and quality of the pictures that are kept for reports: 1 to 2 KB each.
KEPT_SIDE_PX, KEPT_QUALITY = 128, 60


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What happened in one episode."""

    episode: Episode
    instruction: str  # the one that was given, another episode's under the deaf control
    metrics: EpisodeMetrics
    poses: np.ndarray  # (N, 3) start, then the pose after each unit motion
    actions: tuple[int, ...]  # motion indices as decided, STOP included
    confidences: tuple[float, ...]
    latencies_s: tuple[float, ...]  # per decision, wall time
    places: tuple[int, ...] = ()  # per decision, the row of `poses` it was taken at
    probabilities: tuple[tuple[float, ...], ...] = ()  # per decision, of all ten or empty
    frames: tuple[bytes, ...] = ()  # per decision, what the camera saw, WebP; where kept


class Apartment:
    """The kinematic environment of one episode: a grid to drive on and a camera to look through."""

    def __init__(self, episode: Episode, config: EvaluationConfig, with_camera: bool) -> None:
        self.grid = OccupancyGrid.from_scene(episode.scene)
        self.planner = Planner(self.grid, np.array([episode.goal]))
        self._renderer = None
        if with_camera:
            from nvila_ros.sim.renderer import Renderer
            from nvila_ros.sim.world import World

            side_px = config.image_side_px
            self._renderer = Renderer(
                World(episode.scene), side_px, side_px, batch=motion.MAX_UNITS
            )

    def __enter__(self) -> Apartment:
        return self

    def __exit__(self, *_: object) -> None:
        if self._renderer is not None:
            self._renderer.close()

    def frames(self, poses: np.ndarray) -> np.ndarray | list[None]:
        """(N, 3) -> (N, H, W, 3) uint8, or N times None without a camera."""
        return [None] * len(poses) if self._renderer is None else self._renderer.render_batch(poses)

    def drive(self, pose: np.ndarray, motion_index: int) -> tuple[np.ndarray, bool]:
        """Poses (U, 3) after each unit of the motion, and whether an obstacle cut it short."""
        moved = motion.apply(self.grid, pose[None], np.array([motion_index]))
        return moved.unit_poses[0, : moved.num_units[0]], bool(moved.collided[0])

    def goal_distances_m(self, poses: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N,) geodesic distance to the goal."""
        return self.planner.distance_m(poses, np.zeros(len(poses), dtype=int))


def run_episode(
    episode: Episode,
    driver: Driver,
    config: EvaluationConfig,
    *,
    blind: bool = False,
    instruction: str | None = None,
    keeps_frames: bool = False,
) -> Rollout:
    """Drives until STOP or `max_decisions`; `instruction` replaces the episode's own."""
    instruction = instruction or episode.instruction
    black = np.zeros((config.image_side_px, config.image_side_px, 3), np.uint8)
    with_camera = (driver.needs_camera or keeps_frames) and not blind
    with Apartment(episode, config, with_camera=with_camera) as apartment:
        poses = [np.asarray(episode.start, dtype=np.float64)]
        actions, confidences, latencies_s, collisions = [], [], [], []
        places: list[int] = []
        probabilities: list[tuple[float, ...]] = []
        kept: list[bytes] = []
        newest = black

        def see(new_poses: np.ndarray) -> None:
            nonlocal newest
            for frame, pose in zip(apartment.frames(new_poses), new_poses, strict=True):
                newest = newest if frame is None else frame
                driver.see(black if blind else frame, pose, UNIT_DURATION_S * (len(poses) - 1))

        driver.start(instruction, apartment.planner)
        see(poses[0][None])
        for _ in range(config.max_decisions):
            begin_s = time.perf_counter()
            index, confidence = driver.choose()
            latencies_s.append(time.perf_counter() - begin_s)
            actions.append(index)
            confidences.append(confidence)
            places.append(len(poses) - 1)
            probabilities.append(driver.probabilities)
            if keeps_frames:
                kept.append(small_picture(newest))
            if index == motion.STOP:
                break
            unit_poses, collided = apartment.drive(poses[-1], index)
            collisions.append(collided)
            poses.extend(unit_poses)
            see(unit_poses)
        path = np.stack(poses)
        metrics = episode_metrics(
            seed=episode.seed,
            path_m=path[:, :2],
            goal_distances_m=apartment.goal_distances_m(path),
            start_distance_m=episode.geodesic_m,
            reference_m=resample(np.asarray(episode.path), config.reference_spacing_m),
            stopped=actions[-1] == motion.STOP,
            num_decisions=len(actions),
            collided=collisions,
            success_radius_m=config.success_radius_m,
        )
    return Rollout(
        episode=episode,
        instruction=instruction,
        metrics=metrics,
        poses=path,
        actions=tuple(actions),
        confidences=tuple(confidences),
        latencies_s=tuple(latencies_s),
        places=tuple(places),
        probabilities=tuple(probabilities),
        frames=tuple(kept),
    )


def small_picture(rgb: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> WebP of at most `KEPT_SIDE_PX` a side."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((KEPT_SIDE_PX, KEPT_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=KEPT_QUALITY, method=2)
    return buffer.getvalue()

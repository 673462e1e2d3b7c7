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


@dataclass(frozen=True)
class _Choice:
    """One decision of a drive."""

    action: int  # motion index
    confidence: float
    probabilities: tuple[float, ...]
    latency_s: float
    place: int  # row of the poses it was taken at
    frame: bytes | None  # what the camera saw, where kept


class _Drive:
    """A driver in an apartment: what it is shown, what it chose, where it went."""

    def __init__(self, apartment: Apartment, driver: Driver, side_px: int, blind: bool) -> None:
        self._apartment, self._driver = apartment, driver
        self._black = np.zeros((side_px, side_px, 3), np.uint8) if blind else None
        self._newest = np.zeros((side_px, side_px, 3), np.uint8)
        self.poses: list[np.ndarray] = []
        self.choices: list[_Choice] = []
        self.collisions: list[bool] = []

    def arrive(self, poses: np.ndarray) -> None:
        """At (N, 3) poses in turn; the driver sees a frame at each."""
        self.poses.extend(poses)
        time_s = UNIT_DURATION_S * (len(self.poses) - 1)
        for frame, pose in zip(self._apartment.frames(poses), poses, strict=True):
            self._newest = self._newest if frame is None else frame
            self._driver.see(frame if self._black is None else self._black, pose, time_s)

    def choose(self, keeps_frame: bool) -> int:
        """The driver's next motion, timed."""
        begin_s = time.perf_counter()
        index, confidence = self._driver.choose()
        latency_s = time.perf_counter() - begin_s
        frame = small_picture(self._newest) if keeps_frame else None
        place, probabilities = len(self.poses) - 1, self._driver.probabilities
        self.choices.append(_Choice(index, confidence, probabilities, latency_s, place, frame))
        return index

    def move(self, motion_index: int) -> None:
        """Does it, unit by unit, or as far as an obstacle lets it."""
        poses, collided = self._apartment.drive(self.poses[-1], motion_index)
        self.collisions.append(collided)
        self.arrive(poses)


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
    with_camera = (driver.needs_camera or keeps_frames) and not blind
    with Apartment(episode, config, with_camera=with_camera) as apartment:
        drive = _Drive(apartment, driver, config.image_side_px, blind)
        driver.start(instruction, apartment.planner)
        drive.arrive(np.asarray(episode.start, dtype=np.float64)[None])
        for _ in range(config.max_decisions):
            index = drive.choose(keeps_frames)
            if index == motion.STOP:
                break
            drive.move(index)
        distances_m = apartment.goal_distances_m(np.stack(drive.poses))
    return _judged(episode, instruction, drive, distances_m, config)


def _judged(
    episode: Episode,
    instruction: str,
    drive: _Drive,
    goal_distances_m: np.ndarray,
    config: EvaluationConfig,
) -> Rollout:
    path, choices = np.stack(drive.poses), drive.choices
    metrics = episode_metrics(
        seed=episode.seed,
        path_m=path[:, :2],
        goal_distances_m=goal_distances_m,
        start_distance_m=episode.geodesic_m,
        reference_m=resample(np.asarray(episode.path), config.reference_spacing_m),
        stopped=choices[-1].action == motion.STOP,
        num_decisions=len(choices),
        collided=drive.collisions,
        success_radius_m=config.success_radius_m,
    )
    return Rollout(
        episode=episode,
        instruction=instruction,
        metrics=metrics,
        poses=path,
        actions=tuple(choice.action for choice in choices),
        confidences=tuple(choice.confidence for choice in choices),
        latencies_s=tuple(choice.latency_s for choice in choices),
        places=tuple(choice.place for choice in choices),
        probabilities=tuple(choice.probabilities for choice in choices),
        frames=tuple(choice.frame for choice in choices if choice.frame is not None),
    )


def small_picture(rgb: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> WebP of at most `KEPT_SIDE_PX` a side."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((KEPT_SIDE_PX, KEPT_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=KEPT_QUALITY, method=2)
    return buffer.getvalue()

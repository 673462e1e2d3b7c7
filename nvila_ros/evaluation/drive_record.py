# SPDX-License-Identifier: Apache-2.0
"""Record of a drive that was watched from outside: seen, decided, driven, and its judgement."""

from __future__ import annotations

import io
import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from nvila_ros.config import EvaluationConfig
from nvila_ros.evaluation.metrics import EpisodeMetrics, episode_metrics, resample
from nvila_ros.sim.episodes import Episode
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.oracle import Planner

JPEG_QUALITY = 92
# Odometry closer than this to the last pose kept adds nothing to a path.
SAME_POSE_M = 0.01
SAME_POSE_RAD = math.radians(1.0)


@dataclass(frozen=True)
class HeardDecision:
    """A decision as it was published, with what the model was shown."""

    heard_s: float  # simulated time
    sentence: str
    index: int
    confidence: float
    latency_s: float
    num_encoded_frames: int
    goal_distance_m: float
    strip: tuple[np.ndarray | None, ...]  # frames shown, oldest first; None is black


@dataclass
class DriveRecord:
    """Everything heard during one drive, in order; times are simulated seconds."""

    images: list[tuple[float, bytes]] = field(default_factory=list)  # JPEG
    poses: list[tuple[float, float, float, float]] = field(default_factory=list)  # t, x, y, yaw
    collisions_s: list[float] = field(default_factory=list)
    decisions: list[HeardDecision] = field(default_factory=list)
    result: str = ""  # of the navigator: SUCCEEDED when the model said stop
    message: str = ""
    final_speed_m_s: float = math.nan
    final_turn_rad_s: float = math.nan
    last_command: tuple[float, float] | None = None  # of cmd_vel: m/s, rad/s

    def add_image(self, stamp_s: float, rgb: np.ndarray) -> None:
        """Keeps a (H, W, 3) uint8 camera image, compressed."""
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=JPEG_QUALITY)
        self.images.append((stamp_s, buffer.getvalue()))

    def add_pose(self, stamp_s: float, x_m: float, y_m: float, yaw_rad: float) -> None:
        """Keeps a pose unless it is where the last one was."""
        if self.poses:
            _, last_x_m, last_y_m, last_yaw_rad = self.poses[-1]
            moved_m = math.hypot(x_m - last_x_m, y_m - last_y_m)
            turned_rad = abs(math.remainder(yaw_rad - last_yaw_rad, math.tau))
            if moved_m < SAME_POSE_M and turned_rad < SAME_POSE_RAD:
                return
        self.poses.append((stamp_s, x_m, y_m, yaw_rad))

    def path_m(self) -> np.ndarray:
        """(N, 2) driven positions."""
        return np.array([pose[1:3] for pose in self.poses])

    def poses_until(self, stamp_s: float) -> np.ndarray:
        """(N, 3) x, y, yaw up to a time, at least the first one."""
        count = bisect_right(self.poses, stamp_s, key=lambda pose: pose[0])
        return np.array([pose[1:] for pose in self.poses[: max(1, count)]])

    def decision_at(self, stamp_s: float) -> HeardDecision | None:
        """The newest decision heard by then."""
        count = bisect_right(self.decisions, stamp_s, key=lambda decision: decision.heard_s)
        return self.decisions[count - 1] if count else None

    def latencies_s(self) -> np.ndarray:
        """(N,) thinking time of each decision."""
        return np.array([decision.latency_s for decision in self.decisions])


class GoalDistance:
    """Geodesic distance to an episode's goal."""

    def __init__(self, episode: Episode) -> None:
        grid = OccupancyGrid.from_scene(episode.scene)
        self._planner = Planner(grid, np.array([episode.goal]))

    def __call__(self, positions_m: np.ndarray) -> np.ndarray:
        """(N, 2+) metres -> (N,) metres."""
        goal_index = np.zeros(len(positions_m), dtype=int)
        return self._planner.distance_m(np.asarray(positions_m), goal_index)


def judge(record: DriveRecord, episode: Episode, config: EvaluationConfig) -> EpisodeMetrics:
    """The metrics of a recorded drive; a primitive collided when a contact was heard during it."""
    # Odometry is dense: nDTW sums over points, so the path gets the spacing of a rollout's units.
    path_m = resample(record.path_m(), config.reference_spacing_m)
    moves = [decision for decision in record.decisions if decision.index != 0]
    begins_s = [*(decision.heard_s for decision in moves), math.inf]
    collided = [
        any(begin_s <= contact_s < end_s for contact_s in record.collisions_s)
        for begin_s, end_s in itertools.pairwise(begins_s)
    ]
    return episode_metrics(
        seed=episode.seed,
        path_m=path_m,
        goal_distances_m=GoalDistance(episode)(path_m),
        start_distance_m=episode.geodesic_m,
        reference_m=resample(np.asarray(episode.path), config.reference_spacing_m),
        stopped=record.result == "SUCCEEDED",
        num_decisions=len(record.decisions),
        collided=collided,
        success_radius_m=config.success_radius_m,
    )


def latency_summary(record: DriveRecord) -> dict[str, Any]:
    """Percentiles of thinking time, and decisions per second of it."""
    latencies_s = record.latencies_s()
    if len(latencies_s) == 0:
        return {"p50_s": None, "p95_s": None, "decisions_per_s": None}
    p50_s, p95_s = np.percentile(latencies_s, [50, 95])
    return {
        "p50_s": float(p50_s),
        "p95_s": float(p95_s),
        "decisions_per_s": float(len(latencies_s) / latencies_s.sum()),
    }

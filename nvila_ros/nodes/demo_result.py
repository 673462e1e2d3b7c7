# SPDX-License-Identifier: Apache-2.0
"""What the demo writes when the drive has ended: video, floor plan, result.json and one line."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nvila_ros import __version__
from nvila_ros.evaluation import report
from nvila_ros.evaluation.drive_record import DriveRecord, latency_summary
from nvila_ros.evaluation.floor_plan import draw_floor_plan
from nvila_ros.evaluation.metrics import EpisodeMetrics
from nvila_ros.evaluation.video import write_drive_video
from nvila_ros.sim.episodes import Episode

FILES = ("episode.mp4", "trajectory.png", "result.json")
DISTRIBUTIONS = ("torch", "mujoco", "numpy", "ros-rclpy", "av")


@dataclass(frozen=True, kw_only=True)
class FinishedDrive:
    """A drive that has ended, and how it came about; times are of time.monotonic()."""

    episode: Episode
    goal_source: str
    record: DriveRecord
    metrics: EpisodeMetrics
    model_path: Path
    begin_s: float
    end_s: float
    peak_memory_bytes: int


def write_result(drive: FinishedDrive, folder: Path, image_rate_hz: int) -> dict[str, Any]:
    """Writes the three files; returns what result.json holds."""
    record, episode, metrics = drive.record, drive.episode, drive.metrics
    video, plan, result = (folder / name for name in FILES)
    codec = write_drive_video(video, record, episode, image_rate_hz)
    draw_floor_plan(episode, record.path_m(), result=result_line(metrics, record)).save(plan)
    content = {
        "success": metrics.success,
        "seed": episode.seed,
        "instruction": episode.instruction,
        "goal_source": drive.goal_source,
        "navigator_result": record.result,
        "navigator_message": record.message,
        "metrics": report.episode_row(metrics),
        "decision_latency": latency_summary(record),
        "stands_still": _stands_still(record),
        "peak_memory_bytes": drive.peak_memory_bytes,
        "drive_wall_s": drive.end_s - drive.begin_s,
        "total_wall_s": time.monotonic() - drive.begin_s,
        "video_codec": codec,
        "model": str(drive.model_path),
        "versions": _versions(),
        "decisions": [
            {"sentence": d.sentence, "confidence": d.confidence, "latency_s": d.latency_s}
            for d in record.decisions
        ],
    }
    result.write_text(json.dumps(content, indent=2) + "\n")
    return content


def result_line(metrics: EpisodeMetrics, record: DriveRecord) -> str:
    """The outcome for a terminal and for the plan's head."""
    rate = latency_summary(record)["decisions_per_s"]
    # The navigator succeeds when the model says stop, wherever that is.
    how = "it stopped elsewhere" if record.result == "SUCCEEDED" else record.result
    outcome = "Success" if metrics.success else f"No success ({how})"
    speed = "" if rate is None else f", {rate:.1f} decisions per second"
    return (
        f"{outcome}: {metrics.navigation_error_m:.2f} m from the goal, SPL {metrics.spl:.2f}, "
        f"{metrics.num_decisions} decisions{speed}"
    )


def _stands_still(record: DriveRecord) -> bool:
    """Whether the last command was zero and odometry agreed."""
    is_slow = abs(record.final_speed_m_s) < 0.02 and abs(record.final_turn_rad_s) < 0.05
    return is_slow and record.last_command == (0.0, 0.0)


def _versions() -> dict[str, str]:
    versions = {"nvila_ros": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not from pip"
    return versions

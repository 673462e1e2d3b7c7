# SPDX-License-Identifier: Apache-2.0
"""Report: per-episode metrics become one summary, JSON for machines or a table for people."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nvila_ros.evaluation.metrics import EpisodeMetrics, mean_interval, wilson_interval

if TYPE_CHECKING:
    from rich.table import Table

# key in the summary -> (title, unit) in the order of the table
ROWS = {
    "success_rate": ("SR  success rate", ""),
    "oracle_success_rate": ("OS  oracle success rate", ""),
    "spl": ("SPL success weighted by path length", ""),
    "navigation_error_m": ("NE  navigation error", "m"),
    "ndtw": ("nDTW", ""),
    "sdtw": ("SDTW", ""),
    "trajectory_length_m": ("TL  trajectory length", "m"),
    "collision_rate": ("CR  primitives with a contact", ""),
}


def counted(count: int, thing: str) -> str:
    """'1 episode', '2 episodes'."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def failure_kind(episode: EpisodeMetrics) -> str | None:
    """How an episode failed, None when it did not."""
    if episode.success:
        return None
    if episode.stopped:
        return "stopped_after_passing_goal" if episode.oracle_success else "stopped_elsewhere"
    return "no_stop_after_passing_goal" if episode.oracle_success else "no_stop_elsewhere"


def summarise(episodes: Sequence[EpisodeMetrics]) -> dict[str, Any]:
    """Means over the episodes with 95 % intervals: Wilson for shares, bootstrap for other means.

    A mean of fewer than ten episodes has no interval (None). Episodes whose final distance is not
    finite are left out of NE only, and counted.
    """
    if not episodes:
        raise ValueError("no episode to summarise")
    count = len(episodes)
    summary: dict[str, Any] = {"num_episodes": count}
    intervals: dict[str, list[float] | None] = {}
    for key, flag in (("success_rate", "success"), ("oracle_success_rate", "oracle_success")):
        successes = sum(getattr(episode, flag) for episode in episodes)
        summary[key] = successes / count
        intervals[key] = list(wilson_interval(successes, count))
    for key in ("spl", "navigation_error_m", "ndtw", "sdtw", "trajectory_length_m"):
        values = np.array([getattr(episode, key) for episode in episodes], dtype=float)
        finite = values[np.isfinite(values)]
        summary[key] = float(finite.mean()) if len(finite) else None
        interval = mean_interval(finite)
        intervals[key] = None if interval is None else list(interval)
    primitives = sum(episode.num_primitives for episode in episodes)
    collisions = sum(episode.num_collisions for episode in episodes)
    summary["collision_rate"] = collisions / primitives if primitives else 0.0
    intervals["collision_rate"] = list(wilson_interval(collisions, primitives))
    summary["stop_rate"] = sum(episode.stopped for episode in episodes) / count
    summary["mean_decisions"] = sum(episode.num_decisions for episode in episodes) / count
    summary["num_unreachable"] = sum(
        not math.isfinite(episode.navigation_error_m) for episode in episodes
    )
    summary["failures"] = dict(Counter(filter(None, map(failure_kind, episodes))))
    summary["intervals"] = intervals
    return summary


def episode_row(episode: EpisodeMetrics, **extra: Any) -> dict[str, Any]:
    """One JSON row; a distance that is not finite becomes null."""
    row = {**dataclasses.asdict(episode), "failure": failure_kind(episode), **extra}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def table(summary: dict[str, Any], title: str) -> "Table":
    """The summary as a rich table."""
    from rich.table import Table

    failures = [f"{count} {kind}" for kind, count in sorted(summary["failures"].items())]
    caption = f"{counted(summary['num_episodes'], 'episode')}, 95 % intervals"
    view = Table(title=title, caption="\n".join([caption, *failures]))
    view.add_column("metric")
    view.add_column("mean", justify="right")
    view.add_column("interval", justify="right")
    for key, (name, unit) in ROWS.items():
        interval = summary["intervals"][key]
        low_high = "-" if interval is None else f"{interval[0]:.3f} .. {interval[1]:.3f}"
        value = summary[key]
        shown = "-" if value is None else f"{value:.3f} {unit}".rstrip()
        view.add_row(name, shown, low_high)
    return view

# SPDX-License-Identifier: Apache-2.0
"""Success by groups of episodes, and the histogram of latencies: numbers of a report's charts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.evaluation.html_report_entries import EpisodeEntry
from nvila_ros.evaluation.metrics import wilson_interval
from nvila_ros.evaluation.report import failure_kind

MAX_BINS = 6
NICE_STEPS_M = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
NUM_LATENCY_BINS = 24
FAILURE_WORDS = {
    "stopped_after_passing_goal": "was at the goal, stopped elsewhere",
    "stopped_elsewhere": "stopped elsewhere, never at the goal",
    "no_stop_after_passing_goal": "was at the goal, did not stop",
    "no_stop_elsewhere": "never at the goal, did not stop",
}


@dataclass(frozen=True)
class Share:
    """A share of episodes with its 95 % Wilson interval."""

    label: str
    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total


@dataclass(frozen=True)
class Histogram:
    """Counts between edges (seconds), the last bin open: it holds everything above."""

    edges_s: tuple[float, ...]
    counts: tuple[int, ...]
    p50_s: float
    p95_s: float
    max_s: float


def share(label: str, count: int, total: int) -> Share:
    """With its interval."""
    low, high = wilson_interval(count, total)
    return Share(label, count, total, low, high)


def success_by(
    entries: Sequence[EpisodeEntry], label: Callable[[EpisodeEntry], str | None]
) -> list[Share]:
    """Success of each group, in the order of the labels; episodes without a label are left out."""
    found: dict[str, list[bool]] = defaultdict(list)
    for entry in entries:
        name = label(entry)
        if name is not None:
            found[name].append(entry.metrics.success)
    return [share(name, sum(found[name]), len(found[name])) for name in sorted(found)]


def success_by_distance(entries: Sequence[EpisodeEntry]) -> list[Share]:
    """By the shortest way from the start to the goal, in at most six steps of equal length."""
    distances_m = np.array([entry.metrics.start_distance_m for entry in entries])
    finite = distances_m[np.isfinite(distances_m)]
    if not len(finite):
        return []
    extent_m = float(finite.max() - finite.min())
    step_m = next((step for step in NICE_STEPS_M if extent_m / step < MAX_BINS), NICE_STEPS_M[-1])
    first = math.floor(float(finite.min()) / step_m)
    bins: dict[int, list[bool]] = defaultdict(list)
    for entry in entries:
        distance_m = entry.metrics.start_distance_m
        if math.isfinite(distance_m):
            bins[math.floor(distance_m / step_m) - first].append(entry.metrics.success)
    rows = []
    for number in sorted(bins):
        low_m = (first + number) * step_m
        label = f"{low_m:g} to {low_m + step_m:g} m"
        rows.append(share(label, sum(bins[number]), len(bins[number])))
    return rows


def success_by_doors(entries: Sequence[EpisodeEntry]) -> list[Share]:
    """By how many doors the instruction names."""
    return success_by(
        entries, lambda entry: None if entry.num_doors is None else f"{entry.num_doors:d}"
    )


def success_by_kind(entries: Sequence[EpisodeEntry]) -> list[Share]:
    """By the steps that the instruction names."""
    return success_by(entries, lambda entry: entry.kind)


def failures(entries: Sequence[EpisodeEntry]) -> list[tuple[str, Share]]:
    """(kind, share of all episodes) of each way to fail that occurred, the most frequent first."""
    counts = Counter(failure_kind(entry.metrics) for entry in entries)
    del counts[None]
    return [
        (kind, share(FAILURE_WORDS[kind], count, len(entries)))
        for kind, count in counts.most_common()
        if kind is not None
    ]


def latency_histogram(entries: Sequence[EpisodeEntry]) -> Histogram | None:
    """Of all decisions, up to their 99th percentile; the rest is in the last bin."""
    values = [
        decision.latency_s
        for entry in entries
        for decision in entry.decisions
        if decision.latency_s is not None
    ]
    if not values:
        return None
    latencies_s = np.array(values)
    p50_s, p95_s, p99_s = np.percentile(latencies_s, [50, 95, 99])
    edges_s = np.linspace(0.0, max(float(p99_s), 1e-6), NUM_LATENCY_BINS + 1)
    inside = np.minimum(latencies_s, edges_s[-1])
    counts, _ = np.histogram(inside, edges_s)
    return Histogram(
        tuple(edges_s.tolist()),
        tuple(counts.tolist()),
        float(p50_s),
        float(p95_s),
        float(latencies_s.max()),
    )

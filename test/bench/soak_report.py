# SPDX-License-Identifier: Apache-2.0
"""What a soak comes to: counts, memory over time, late commands; written after each episode."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import theilslopes

COMMAND_DEADLINE_S = 0.25  # the bound of docs/safety.md
MAX_GROWTH_MB = 20.0  # of all processes together, last third of the episodes against second
SHORT_MINUTES, MAX_SHORT_GROWTH_MB = 10.0, 150.0  # few episodes: one large scene is no leak
MAX_LATE_SHARE = 0.001  # commands later than the deadline: the machine may stall, the node may not
MIN_FOR_SLOPE = 6  # episodes


class SoakReport:
    """Keeps a few numbers of every episode, and counts of the rest."""

    def __init__(self, path: Path, planned_minutes: float, *, judges_lateness: bool = True) -> None:
        self._path = path
        self._planned_minutes = planned_minutes
        self._judges_lateness = judges_lateness
        self._episodes: list[dict[str, Any]] = []
        self._load_before = os.getloadavg()[0]
        self._num_decisions = self._num_commands = self._num_late = 0
        self._worst_interval_s = 0.0
        self.minutes = 0.0
        self.failure = ""
        self.is_over = False

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    def add(
        self, minute: float, seed: int, result: str, heard: Any, memory_mb: dict[str, float]
    ) -> None:
        """One episode; `heard` (node_drives.Heard) holds nothing of the ones before."""
        late = sum(interval_s > COMMAND_DEADLINE_S for interval_s in heard.intervals_s)
        worst_s = max(heard.intervals_s, default=0.0)
        self._num_commands += len(heard.intervals_s)
        self._num_late += late
        self._num_decisions += heard.num_decisions
        self._worst_interval_s = max(self._worst_interval_s, worst_s)
        self.minutes = minute
        self._episodes.append(
            {
                "minute": round(minute, 2),
                "seed": seed,
                "result": result,
                "decisions": heard.num_decisions,
                "late_commands": late,
                "worst_interval_s": round(worst_s, 3),
                "waiting_share": round(heard.waiting_shares[-1], 4),
                "latency_p50_ms": round(1e3 * float(np.median(heard.latency_s or [0.0])), 1),
                "memory_mb": {name: round(value, 1) for name, value in memory_mb.items()},
                "load": round(os.getloadavg()[0], 1),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Everything but the episodes themselves."""
        late_share = self._num_late / max(1, self._num_commands)
        totals = self._memory("total")
        summary = {
            "planned_minutes": self._planned_minutes,
            "minutes": round(self.minutes, 1),
            "is_over": self.is_over,
            "failure": self.failure,
            "load_before": round(self._load_before, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "episodes": len(self._episodes),
            "results": dict(Counter(row["result"] for row in self._episodes)),
            "apartments": len({row["seed"] for row in self._episodes}),
            "decisions": self._num_decisions,
            "commands": self._num_commands,
            "command_deadline_s": COMMAND_DEADLINE_S,
            "late_commands": self._num_late,
            "late_share": round(late_share, 6),
            "worst_interval_s": round(self._worst_interval_s, 3),
            "waiting_share_mean": round(
                float(np.mean([row["waiting_share"] for row in self._episodes] or [0.0])), 4
            ),
            "memory_mb_first_last": [round(v, 1) for v in (totals[:1] + totals[-1:])],
            "memory_growth_mb": round(self.growth_mb(), 2),
            "memory_slope_mb_per_hour": {
                name: self.slope_mb_per_hour(name) for name in ("total", *self._names())
            },
        }
        return (
            summary
            | {"problems": (problems := self._problems(late_share))}
            | {"passed": self.is_over and not problems}
        )

    def growth_mb(self) -> float:
        """From the second third of the episodes to the last, apartment by apartment: their median.

        Apartments differ by more than what is allowed; compared are only those met in both.
        """
        third = max(1, len(self._episodes) // 3)
        totals = self._memory("total")

        def by_seed(places: range) -> dict[int, float]:
            found: dict[int, list[float]] = {}
            for place in places:
                found.setdefault(self._episodes[place]["seed"], []).append(totals[place])
            return {seed: float(np.median(values)) for seed, values in found.items()}

        before = by_seed(range(third, min(2 * third, len(totals))))
        after = by_seed(range(max(0, len(totals) - third), len(totals)))
        return float(np.median([after[s] - before[s] for s in before.keys() & after] or [0.0]))

    def slope_mb_per_hour(self, name: str) -> dict[str, float] | None:
        """Theil-Sen's slope and its 95 % interval, the first third left out; None: too short."""
        begin = len(self._episodes) // 3
        hours = [row["minute"] / 60.0 for row in self._episodes[begin:]]
        if len(hours) < MIN_FOR_SLOPE:
            return None
        slope, _, low, high = theilslopes(self._memory(name)[begin:], hours)
        return {"slope": round(slope, 2), "low": round(low, 2), "high": round(high, 2)}

    def write(self) -> None:
        """The whole report, replacing the one before in one step."""
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps({**self.summary(), "each": self._episodes}, indent=1) + "\n")
        beside.replace(self._path)

    def _names(self) -> list[str]:
        return sorted({name for row in self._episodes for name in row["memory_mb"]})

    def _memory(self, name: str) -> list[float]:
        rows = [row["memory_mb"] for row in self._episodes]
        return [sum(row.values()) if name == "total" else row.get(name, 0.0) for row in rows]

    def _problems(self, late_share: float) -> list[str]:
        problems = [self.failure] if self.failure else []
        if not self._episodes:
            problems.append("no episode ended")
        is_short = self._planned_minutes < SHORT_MINUTES
        allowed_mb = MAX_SHORT_GROWTH_MB if is_short else MAX_GROWTH_MB
        if self.growth_mb() > allowed_mb:
            problems.append(f"memory grew by {self.growth_mb():.1f} MB, allowed {allowed_mb:g}")
        if self._judges_lateness and late_share > MAX_LATE_SHARE:
            problems.append(f"{100 * late_share:.2f} % of the commands came late")
        return problems

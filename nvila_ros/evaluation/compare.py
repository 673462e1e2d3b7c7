# SPDX-License-Identifier: Apache-2.0
"""Two runs over the same episodes: differences, and whether they are more than chance.

Episodes are paired by their key. Success is tested by McNemar's exact test: of the b + c episodes
that only one of the runs solved (b only A, c only B), each is as likely to be A's as B's if the
runs are equally good, so with n = b + c and k = min(b, c)

    p = min(1, 2 * sum over i = 0..k of C(n, i) / 2^n)        (McNemar 1947; exact form)

Means are compared by the paired bootstrap (Efron, Tibshirani 1993): the mean difference B - A is
taken over episodes drawn with replacement, R = 10,000 times. Its 95 % interval are the quantiles
0.025 and 0.975 of these means m_r, and

    p = min(1, 2 * min(1 + #{m_r <= 0}, 1 + #{m_r >= 0}) / (R + 1))
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from nvila_ros.errors import DataError
from nvila_ros.evaluation.html_report import EPISODES_NAME, RUN_NAME
from nvila_ros.evaluation.metrics import NUM_RESAMPLES, bootstrap_means

MEANS = ("spl", "navigation_error_m", "ndtw", "sdtw", "trajectory_length_m", "num_decisions")
SHARES = ("success", "oracle_success")
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run as its files tell it."""

    name: str
    facts: dict[str, Any]
    rows: dict[str, Row]  # key -> metrics of the episode
    folder: Path | None  # of a report: plans and decisions are there


@dataclass(frozen=True)
class Difference:
    """One metric of both runs; the difference is B - A."""

    metric: str
    test: str  # 'mcnemar' or 'bootstrap'
    num_pairs: int
    first: float
    second: float
    low: float  # 95 % interval of the difference
    high: float
    p: float

    @property
    def difference(self) -> float:
        return self.second - self.first


def read_run(path: Path) -> Run:
    """A report's folder, or the file that `nvila simulate --json` printed; DataError otherwise."""
    file = path / RUN_NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}); give the folder of `--report` or the "
            "output of `nvila simulate --json`"
        ) from None
    except ValueError as error:
        raise DataError(f"{file} is no JSON of a run ({error})") from None
    rows = content.get("episodes") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} holds no list of episodes; write it with --report or --json")
    if not rows:
        raise DataError(f"{file} holds no episodes; there is nothing to compare")
    try:
        keyed = {str(row.get("key", row["seed"])): row for row in rows}
        missing = [name for name in (*SHARES, *MEANS) if name not in rows[0]]
    except KeyError:
        raise DataError(f"{file}: an episode has neither key nor seed") from None
    if missing:
        raise DataError(f"{file}: episodes lack {', '.join(missing)}")
    facts = {name: value for name, value in content.items() if name != "episodes"}
    name = path.name if path.is_dir() else path.stem
    return Run(name, facts, keyed, path if path.is_dir() else None)


def paired_keys(first: Run, second: Run) -> list[str]:
    """Episodes that both runs have, in the first one's order; DataError where there is none."""
    keys = [key for key in first.rows if key in second.rows]
    if not keys:
        raise DataError(
            f"{first.name} and {second.name} share no episode; run both over the same seeds"
        )
    return keys


def compare(first: Run, second: Run, seed: int = 0) -> list[Difference]:
    """Every metric over the episodes that both runs have."""
    keys = paired_keys(first, second)
    found = []
    for name in SHARES:
        one, two = (_values(run, keys, name) for run in (first, second))
        low, high, _ = bootstrap(two - one, seed)
        p = mcnemar(int(np.sum(one > two)), int(np.sum(two > one)))
        found.append(
            Difference(
                name, "mcnemar", len(keys), float(one.mean()), float(two.mean()), low, high, p
            )
        )
    for name in MEANS:
        one, two = (_values(run, keys, name) for run in (first, second))
        both = np.isfinite(one) & np.isfinite(two)  # an unreachable goal has no distance
        if not both.any():
            continue
        one, two = one[both], two[both]
        low, high, p = bootstrap(two - one, seed)
        mean_one, mean_two = float(one.mean()), float(two.mean())
        found.append(Difference(name, "bootstrap", len(one), mean_one, mean_two, low, high, p))
    return found


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p value of b against c discordant pairs."""
    total = only_first + only_second
    return 1.0 if total == 0 else float(stats.binomtest(only_first, total, 0.5).pvalue)


def bootstrap(differences: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """(N,) paired differences -> low and high end of the 95 % interval of their mean, p value."""
    means = bootstrap_means(differences, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = 1 + min(np.sum(means <= 0.0), np.sum(means >= 0.0))
    return float(low), float(high), min(1.0, 2.0 * float(tail) / (NUM_RESAMPLES + 1))


def discordant(first: Run, second: Run) -> tuple[list[str], list[str]]:
    """Keys of the episodes that only the first, and only the second run solved."""
    keys = paired_keys(first, second)
    solved = {key: (first.rows[key]["success"], second.rows[key]["success"]) for key in keys}
    only_first = [key for key in keys if solved[key] == (True, False)]
    return only_first, [key for key in keys if solved[key] == (False, True)]


def read_payloads(run: Run) -> dict[str, Row]:
    """Key -> what the report draws of the episode; empty where the run is only a JSON file."""
    if run.folder is None:
        return {}
    file = run.folder / EPISODES_NAME
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return {row["key"]: row for row in map(json.loads, lines)}
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{file} cannot be read ({error}); write the report again") from None


def _values(run: Run, keys: list[str], name: str) -> np.ndarray:
    """(N,) float64; null is nan."""
    values = [run.rows[key][name] for key in keys]
    return np.array([math.nan if value is None else float(value) for value in values])

# SPDX-License-Identifier: Apache-2.0
"""From scores to a smaller data set: by DeltaLoss, at random, or spread over clusters.

NVILA's rule: of every source-level subset D_i the ceil(rho |D_i|) samples with the largest Delta.
Random (several runs) and k-means clusters of the tower's features, drawn from evenly, are what the
paper compares with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.training.delta_loss import SCORES_SUFFIX, unpacked
from nvila_ros.training.scale import write_atomically

By = Literal["sum", "mean"]
NUM_RANDOM_RUNS = 3  # the paper's mean is over three


@dataclass(frozen=True)
class Score:
    """One scored sample."""

    key: str
    source: str
    delta_sum: float
    delta_mean: float
    mean_large: float  # log probability per token under the large model
    unit: str  # where it is read again
    feature: np.ndarray | None = field(default=None, repr=False, compare=False)

    def delta(self, by: By) -> float:
        """The number that is ranked."""
        return self.delta_sum if by == "sum" else self.delta_mean


@dataclass(frozen=True)
class Scores:
    """All of a folder."""

    good: list[Score]
    num_broken: int

    def subsets(self) -> dict[str, list[Score]]:
        """By source, in the order of their names."""
        found: dict[str, list[Score]] = {}
        for score in self.good:
            found.setdefault(score.source, []).append(score)
        return dict(sorted(found.items()))


def read_scores(folder: Path) -> Scores:
    """What `nvila data score` wrote; a sample that is there twice counts once."""
    files = sorted(folder.glob(f"*{SCORES_SUFFIX}"))
    if not files:
        raise DataError(f"{folder} holds no scores; run `nvila data score ... --out {folder}`")
    found: dict[tuple[str, str], Score] = {}
    num_broken = 0
    for file in files:
        unit = file.name.removesuffix(SCORES_SUFFIX)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
            try:
                row = json.loads(line)
                if "broken" in row:
                    num_broken += 1
                    continue
                score = Score(
                    key=row["key"],
                    source=row["source"],
                    delta_sum=float(row["delta_sum"]),
                    delta_mean=float(row["delta_mean"]),
                    mean_large=float(row["sum_large"]) / int(row["tokens_large"]),
                    unit=unit,
                    feature=unpacked(row["feature"]) if "feature" in row else None,
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}, line {number + 1} is malformed ({error!r}); remove the file and "
                    "score again"
                ) from None
            if not (math.isfinite(score.delta_sum) and math.isfinite(score.delta_mean)):
                num_broken += 1
                continue
            found[score.source, score.key] = score
    if not found:
        raise DataError(f"{folder}: all {num_broken} rows are broken; nothing can be pruned")
    return Scores([*found.values()], num_broken)


def quota(count: int, keep: float) -> int:
    """ceil(keep * count), unharmed by how 0.1 is stored."""
    if not 0 < keep <= 1:
        raise ConfigError(f"keep is {keep}; a share above 0 and at most 1 is expected")
    return math.ceil(keep * count - 1e-9)


def by_delta(scores: Sequence[Score], keep: float, by: By) -> list[Score]:
    """The largest Delta of one subset; equal ones by key."""
    ranked = sorted(scores, key=lambda score: (-score.delta(by), score.key))
    return ranked[: quota(len(scores), keep)]


def at_random(scores: Sequence[Score], keep: float, seed: int) -> list[Score]:
    """As many, drawn evenly."""
    ordered = sorted(scores, key=lambda score: score.key)
    rng = np.random.default_rng([seed, 17])
    chosen = rng.permutation(len(ordered))[: quota(len(ordered), keep)]
    return [ordered[index] for index in sorted(chosen)]


def by_cluster(scores: Sequence[Score], keep: float, num_clusters: int, seed: int) -> list[Score]:
    """As many, drawn evenly over k-means clusters; samples without pictures are one cluster."""
    ordered = sorted(scores, key=lambda score: score.key)
    rng = np.random.default_rng([seed, 18])
    members = [
        [ordered[index] for index in rng.permutation(np.flatnonzero(labels))]
        for labels in _cluster_masks(ordered, num_clusters, seed)
    ]
    chosen: list[Score] = []
    wanted = quota(len(ordered), keep)
    while len(chosen) < wanted:  # one from each in turn; the small ones run out first
        for cluster in members:
            if cluster and len(chosen) < wanted:
                chosen.append(cluster.pop())
    return chosen


def _cluster_masks(scores: Sequence[Score], num_clusters: int, seed: int) -> list[np.ndarray]:
    from scipy.cluster.vq import kmeans2

    places = [number for number, score in enumerate(scores) if score.feature is not None]
    without = np.ones(len(scores), bool)
    without[places] = False
    masks = [without] if without.any() else []
    if not places:
        return masks
    known = [score.feature for score in scores if score.feature is not None]
    features = np.stack(known).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-12
    count = max(1, min(num_clusters, len(places) // 2))
    labels = kmeans2(features, count, minit="++", rng=np.random.default_rng([seed, 19]))[1]
    for label in range(count):
        mask = np.zeros(len(scores), bool)
        mask[np.array(places)[labels == label]] = True
        if mask.any():
            masks.append(mask)
    return masks


def prune(
    scores: Scores,
    out: Path,
    *,
    keep: float,
    by: By = "mean",
    num_clusters: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes `delta.json`, `random_<n>.json` and `cluster.json`, and says how they differ."""
    quota(1, keep)
    methods: dict[str, Callable[[list[Score]], list[Score]]] = {
        "delta": lambda subset: by_delta(subset, keep, by)
    }
    for run in range(NUM_RANDOM_RUNS):
        methods[f"random_{run}"] = lambda subset, run=run: at_random(  # type: ignore[misc]
            subset, keep, seed + run
        )
    if any(score.feature is not None for score in scores.good):
        methods["cluster"] = lambda subset: by_cluster(subset, keep, num_clusters, seed)
    out.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, set[tuple[str, str]]] = {}
    report: dict[str, Any] = {
        "keep": keep,
        "by": by,
        "num_broken": scores.num_broken,
        "methods": {},
    }
    for name, method in methods.items():
        selected = {source: method(subset) for source, subset in scores.subsets().items()}
        content = {
            "method": name,
            "keep": keep,
            "by": by if name == "delta" else None,
            "seed": seed,
            "selected": {s: sorted(score.key for score in kept) for s, kept in selected.items()},
        }
        write_atomically(out / f"{name}.json", (json.dumps(content) + "\n").encode())
        kept = [score for subset in selected.values() for score in subset]
        chosen[name] = {(score.source, score.key) for score in kept}
        report["methods"][name] = {
            "num_kept": len(kept),
            "mean_delta": float(np.mean([score.delta(by) for score in kept])),
            "share_negative": float(np.mean([score.delta(by) < 0 for score in kept])),
            "shared_with_delta": len(chosen[name] & chosen["delta"]) / len(chosen["delta"]),
        }
    report["subsets"] = {
        source: _subset_summary(subset, keep, by) for source, subset in scores.subsets().items()
    }
    return report


def _subset_summary(subset: list[Score], keep: float, by: By) -> dict[str, Any]:
    values = np.array([score.delta(by) for score in subset])
    return {
        "num_samples": len(subset),
        "num_kept": quota(len(subset), keep),
        "delta": {f"p{p}": float(np.percentile(values, p)) for p in (5, 25, 50, 75, 95)},
        "share_negative": float((values < 0).mean()),
        "threshold": by_delta(subset, keep, by)[-1].delta(by),
    }

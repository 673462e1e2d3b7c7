# SPDX-License-Identifier: Apache-2.0
"""Navigation metrics of VLN-CE: from a driven path and a reference path to numbers with intervals.

Distances to the goal are geodesic. Definitions, per episode:

    TL    sum of Euclidean step lengths of the driven path
    NE    distance to the goal at the end
    SR    STOP was called and NE < success radius (strict)
    OS    distance to the goal < success radius at any time, the start included
    SPL   SR * start distance / max(start distance, TL)
    nDTW  exp(-DTW(driven, reference) / (reference points * success radius)); exact DTW, and
          positions count, not turns
    SDTW  SR * nDTW
    CR    share of executed primitives in which the base touched something; pooled over the episodes

The success radius is 1.0 m (VLN-CE's 3.0 m is half of these apartments). CR is no VLN-CE metric.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two-sided 95 % quantile of the normal distribution.
QUANTILE_95 = 1.959963984540054
MIN_BOOTSTRAP_VALUES = 10  # fewer say too little about the values that were not drawn
NUM_RESAMPLES = 10_000
CHUNK = 500  # resamples at once: memory stays below 5 MB per thousand episodes
# Shorter steps do not count as a change of position in nDTW (metres).
SAME_POSITION_M = 1e-6


@dataclass(frozen=True, kw_only=True)
class EpisodeMetrics:
    """One episode's result; `num_primitives` excludes STOP, `num_decisions` includes it."""

    seed: int
    success: bool
    oracle_success: bool
    stopped: bool
    spl: float
    navigation_error_m: float
    ndtw: float
    sdtw: float
    trajectory_length_m: float
    start_distance_m: float
    num_decisions: int
    num_primitives: int
    num_collisions: int


def episode_metrics(
    *,
    seed: int,
    path_m: np.ndarray,
    goal_distances_m: np.ndarray,
    start_distance_m: float,
    reference_m: np.ndarray,
    stopped: bool,
    num_decisions: int,
    collided: Sequence[bool],
    success_radius_m: float = 1.0,
) -> EpisodeMetrics:
    """Judges one episode.

    path_m: (N, 2) driven positions, start first; goal_distances_m: (N,) geodesic distance at each;
    reference_m: (R, 2) evenly spaced reference path; collided: one flag per executed primitive.
    """
    error_m = float(goal_distances_m[-1])
    length_m = path_length_m(path_m)
    success = bool(stopped and error_m < success_radius_m)
    ndtw = normalised_dtw(path_m, reference_m, success_radius_m)
    longest_m = max(start_distance_m, length_m)
    return EpisodeMetrics(
        seed=seed,
        success=success,
        oracle_success=bool(np.min(goal_distances_m) < success_radius_m),
        stopped=bool(stopped),
        spl=success * (start_distance_m / longest_m if longest_m > 0.0 else 1.0),
        navigation_error_m=error_m,
        ndtw=ndtw,
        sdtw=success * ndtw,
        trajectory_length_m=length_m,
        start_distance_m=float(start_distance_m),
        num_decisions=num_decisions,
        num_primitives=len(collided),
        num_collisions=int(sum(collided)),
    )


def path_length_m(path_m: np.ndarray) -> float:
    """(N, 2) -> length of the polyline."""
    return float(np.linalg.norm(np.diff(path_m, axis=0), axis=1).sum())


def resample(path_m: np.ndarray, spacing_m: float) -> np.ndarray:
    """(N, 2) polyline -> (R, 2) points every `spacing_m` along it, both ends included."""
    steps_m = np.linalg.norm(np.diff(path_m, axis=0), axis=1)
    arc_m = np.concatenate([[0.0], np.cumsum(steps_m)])
    num_points = max(2, math.ceil(arc_m[-1] / spacing_m) + 1)
    wanted_m = np.linspace(0.0, arc_m[-1], num_points)
    return np.stack([np.interp(wanted_m, arc_m, path_m[:, axis]) for axis in (0, 1)], axis=1)


def normalised_dtw(path_m: np.ndarray, reference_m: np.ndarray, radius_m: float) -> float:
    """nDTW in (0, 1]; consecutive equal positions of the driven path count once."""
    moved = np.linalg.norm(np.diff(path_m, axis=0), axis=1) > SAME_POSITION_M
    driven_m = path_m[np.concatenate([[True], moved])]
    return math.exp(-dtw(driven_m, reference_m) / (len(reference_m) * radius_m))


def dtw(first_m: np.ndarray, second_m: np.ndarray) -> float:
    """Exact dynamic time warping cost of two polylines, (N, 2) and (M, 2), Euclidean per pair."""
    costs = np.linalg.norm(first_m[:, None, :] - second_m[None, :, :], axis=-1)  # (N, M)
    best = np.cumsum(costs[0])
    for row in costs[1:]:
        # best[j] = row[j] + min(above[j], above[j-1], best[j-1]), the last as a running minimum
        above = np.minimum(best, np.concatenate([[np.inf], best[:-1]]))
        sums = np.cumsum(row)
        best = sums + np.minimum.accumulate(above - np.concatenate([[0.0], sums[:-1]]))
    return float(best[-1])


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, QUANTILE_95**2
    centre = share + square / (2 * trials)
    spread = QUANTILE_95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    low = (centre - spread) / scale if successes > 0 else 0.0
    high = (centre + spread) / scale if successes < trials else 1.0
    return low, high


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a mean, within the values; None below ten of them.

    Scores lie in [0, 1] and many are exactly 0: a normal interval would leave that range.
    """
    if len(values) < MIN_BOOTSTRAP_VALUES:
        return None
    low, high = np.quantile(bootstrap_means(values), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, ...) -> (NUM_RESAMPLES, ...) means of N rows drawn with replacement (Efron 1979)."""
    rng = np.random.default_rng(seed)
    count = len(values)
    return np.concatenate(
        [
            values[rng.integers(count, size=(CHUNK, count))].mean(axis=1)
            for _ in range(NUM_RESAMPLES // CHUNK)
        ]
    )

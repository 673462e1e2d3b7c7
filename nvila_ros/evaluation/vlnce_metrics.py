# SPDX-License-Identifier: Apache-2.0
"""Metrics of VLN-CE as its own code computes them, so that numbers compare with the papers'.

    TL    sum of Euclidean step lengths
    NE    geodesic distance to the goal at the end
    SR    STOP was called and NE < 3.0 m (strict); 500 steps without STOP fail
    OS    distance to the goal < 3.0 m at any step, the start included
    SPL   SR * geodesic at the start / max(geodesic at the start, TL)
    nDTW  exp(-DTW(path, oracle path) / (oracle points * 3.0)); DTW by the FastDTW approximation
          with radius 1, and path points only where the position changed
    SDTW  SR * nDTW

FastDTW: Salvador and Chan, "Toward accurate dynamic time warping in linear time and space" (2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SUCCESS_RADIUS_M = 3.0
MAX_STEPS = 500
METRICS = ("tl", "ne", "sr", "os", "spl", "ndtw", "sdtw", "steps")

Window = list[tuple[int, int]]
Path = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class VlnCeMetrics:
    """One episode; lengths in metres, shares in [0, 1]; `steps` counts STOP."""

    tl: float
    ne: float
    sr: float
    os: float
    spl: float
    ndtw: float
    sdtw: float
    steps: int


def vlnce_metrics(
    path_m: np.ndarray,
    goal_distances_m: Sequence[float],
    reference_m: np.ndarray,
    *,
    stopped: bool,
    num_steps: int,
) -> VlnCeMetrics:
    """(N, 3) positions, start first, and (N,) distances after every step; (R, 3) oracle path."""
    length_m = float(np.linalg.norm(np.diff(path_m, axis=0), axis=1).sum())
    start_m, error_m = float(goal_distances_m[0]), float(goal_distances_m[-1])
    success = float(stopped and error_m < SUCCESS_RADIUS_M)
    longest_m = max(start_m, length_m)
    moved = np.concatenate([[True], (np.diff(path_m, axis=0) != 0.0).any(axis=1)])
    distance = fast_dtw(path_m[moved], reference_m)
    ndtw = math.exp(-distance / (len(reference_m) * SUCCESS_RADIUS_M))
    return VlnCeMetrics(
        tl=length_m,
        ne=error_m,
        sr=success,
        os=float(min(goal_distances_m) < SUCCESS_RADIUS_M),
        spl=success * (start_m / longest_m if longest_m > 0.0 else 1.0),
        ndtw=ndtw,
        sdtw=success * ndtw,
        steps=num_steps,
    )


def fast_dtw(one: np.ndarray, other: np.ndarray, radius: int = 1) -> float:
    """DTW distance of two (N, D) curves by FastDTW."""
    return _fast(np.asarray(one, float), np.asarray(other, float), radius)[0]


def _fast(one: np.ndarray, other: np.ndarray, radius: int) -> tuple[float, Path]:
    if min(len(one), len(other)) < radius + 2:
        return _within(one, other, None)
    _, path = _fast(_halved(one), _halved(other), radius)
    return _within(one, other, _widened(path, len(one), len(other), radius))


def _halved(curve: np.ndarray) -> np.ndarray:
    even = len(curve) - len(curve) % 2
    return (curve[0:even:2] + curve[1:even:2]) / 2


def _widened(path: Path, num_rows: int, num_columns: int, radius: int) -> Window:
    """The coarse path at twice the resolution, with `radius` coarse cells on every side."""
    near = set(path)
    reach = range(-radius, radius + 1)
    near |= {(i + down, j + right) for i, j in path for down in reach for right in reach}
    fine = {(2 * i + down, 2 * j + right) for i, j in near for down in (0, 1) for right in (0, 1)}
    window, first = [], 0
    for i in range(num_rows):
        begin = None
        for j in range(first, num_columns):
            if (i, j) in fine:
                window.append((i, j))
                begin = j if begin is None else begin
            elif begin is not None:
                break
        first = first if begin is None else begin
    return window


def _within(one: np.ndarray, other: np.ndarray, window: Window | None) -> tuple[float, Path]:
    """DTW over the cells of a window, and the path that it took."""
    cells = window or [(i, j) for i in range(len(one)) for j in range(len(other))]
    costs = np.linalg.norm(one[:, None] - other[None], axis=-1)  # (N, M)
    best: dict[tuple[int, int], tuple[float, tuple[int, int]]] = {(-1, -1): (0.0, (-1, -1))}
    nowhere = (math.inf, (-1, -1))
    for i, j in cells:
        came_from = min(
            ((i - 1, j), (i, j - 1), (i - 1, j - 1)), key=lambda cell: best.get(cell, nowhere)[0]
        )
        best[i, j] = (best.get(came_from, nowhere)[0] + float(costs[i, j]), came_from)
    path, cell = [], (len(one) - 1, len(other) - 1)
    while cell != (-1, -1):
        path.append(cell)
        cell = best[cell][1]
    return best[len(one) - 1, len(other) - 1][0], path[::-1]


def summarise(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float | int]]:
    """Mean of every metric over the finite rows, and how many were not finite: none is hidden."""
    summary: dict[str, dict[str, float | int]] = {}
    for name in METRICS:
        values = np.array([row[name] for row in rows], float)
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if len(finite) else math.nan
        bad = len(values) - len(finite)
        summary[name] = {"mean": mean, "num": len(values), "num_not_finite": bad}
    return summary

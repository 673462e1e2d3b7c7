# SPDX-License-Identifier: Apache-2.0
"""VLN-CE's metrics by hand-made episodes, and FastDTW against its package."""

import math

import numpy as np
import pytest

from nvila_ros.evaluation.metrics import dtw
from nvila_ros.evaluation.vlnce_metrics import fast_dtw, summarise, vlnce_metrics

PATH = np.array([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [2, 0, 0]])
REFERENCE = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])


def judge(distances=(5.0, 4.0, 4.0, 2.9), stopped=True, path=PATH):
    return vlnce_metrics(path, distances, REFERENCE, stopped=stopped, num_steps=4)


def test_a_perfect_drive():
    metrics = judge()
    assert (metrics.tl, metrics.ne, metrics.sr, metrics.os) == (2.0, 2.9, 1.0, 1.0)
    assert metrics.spl == 1.0 and metrics.ndtw == metrics.sdtw == 1.0 and metrics.steps == 4


def test_three_metres_are_not_enough():
    metrics = judge((5.0, 4.0, 4.0, 3.0))
    assert metrics.sr == metrics.os == metrics.spl == metrics.sdtw == 0.0 and metrics.ndtw == 1.0


def test_without_stop_there_is_no_success():
    metrics = judge(stopped=False)
    assert metrics.sr == 0.0 and metrics.os == 1.0


def test_a_detour_costs():
    path = np.array([[0.0, 0, 0], [0, 4, 0], [0, 0, 0], [2, 0, 0]])
    metrics = judge(path=path)
    assert metrics.tl == 10.0 and metrics.spl == 0.5
    assert metrics.ndtw == pytest.approx(math.exp(-dtw(path, REFERENCE) / 9.0))


def test_turning_on_the_spot_adds_no_point():
    still = np.repeat(PATH, 5, axis=0)
    assert vlnce_metrics(still, [5.0] * 20, REFERENCE, stopped=True, num_steps=20).ndtw == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_fast_dtw_is_near_exact_dtw_and_never_below(seed):
    generator = np.random.default_rng(seed)
    one = generator.normal(size=(generator.integers(1, 60), 3)).cumsum(axis=0)
    other = generator.normal(size=(generator.integers(1, 60), 3)).cumsum(axis=0)
    exact, fast = dtw(one, other), fast_dtw(one, other)
    assert exact - 1e-9 <= fast <= 1.5 * exact + 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_fast_dtw_is_that_of_the_package(seed):
    package = pytest.importorskip("fastdtw", reason="pip install fastdtw to compare with it")
    generator = np.random.default_rng(seed)
    one = generator.normal(size=(40 + seed, 3)).cumsum(axis=0)
    other = generator.normal(size=(30, 3)).cumsum(axis=0)
    distance, _ = package.fastdtw(one, other, dist=lambda a, b: np.linalg.norm(a - b))
    assert fast_dtw(one, other) == pytest.approx(distance, rel=1e-9)


def test_rows_that_are_not_finite_are_counted():
    row = dict.fromkeys(("tl", "ne", "sr", "os", "spl", "ndtw", "sdtw", "steps"), 1.0)
    summary = summarise([row, {**row, "ne": math.inf}, {**row, "ne": 3.0}])
    assert summary["ne"] == {"mean": 2.0, "num": 3, "num_not_finite": 1}
    assert summary["sr"]["num_not_finite"] == 0

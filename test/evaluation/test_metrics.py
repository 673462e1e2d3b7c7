# SPDX-License-Identifier: Apache-2.0
"""Navigation metrics against numbers worked out by hand and a brute-force DTW."""

import math

import numpy as np
import pytest

from nvila_ros.evaluation import metrics, report

STRAIGHT = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])


def judged(**changes):
    arguments = {
        "seed": 1,
        "path_m": STRAIGHT,
        "goal_distances_m": np.array([3.0, 2.0, 1.0, 0.0]),
        "start_distance_m": 3.0,
        "reference_m": STRAIGHT,
        "stopped": True,
        "num_decisions": 4,
        "collided": [False, True, False],
    }
    return metrics.episode_metrics(**{**arguments, **changes})


def brute_force_dtw(first, second):
    table = np.full((len(first) + 1, len(second) + 1), np.inf)
    table[0, 0] = 0.0
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1, j + 1] = np.linalg.norm(a - b) + min(
                table[i, j], table[i, j + 1], table[i + 1, j]
            )
    return table[-1, -1]


def test_a_perfect_episode():
    result = judged()
    assert result.success and result.oracle_success
    assert (result.spl, result.ndtw, result.sdtw) == (1.0, 1.0, 1.0)
    assert result.trajectory_length_m == 3.0
    assert (result.num_primitives, result.num_collisions) == (3, 1)


def test_no_stop_is_no_success_but_an_oracle_success():
    result = judged(stopped=False)
    assert not result.success and result.oracle_success
    assert result.spl == result.sdtw == 0.0


def test_success_radius_is_strict():
    assert not judged(goal_distances_m=np.array([3.0, 1.0])).success
    assert judged(goal_distances_m=np.array([3.0, 0.999])).success


def test_oracle_success_counts_the_start_and_passing_by():
    assert judged(goal_distances_m=np.array([0.5, 4.0])).oracle_success
    assert not judged(goal_distances_m=np.array([3.0, 4.0])).oracle_success


def test_spl_punishes_a_detour():
    detour = np.array([[0.0, 0.0], [0.0, 1.5], [3.0, 1.5], [3.0, 0.0]])
    assert judged(path_m=detour).spl == pytest.approx(0.5)


def test_ndtw_ignores_turns_on_the_spot():
    turning = np.repeat(STRAIGHT, 3, axis=0)
    assert judged(path_m=turning).ndtw == 1.0


def test_ndtw_of_a_parallel_path():
    result = judged(path_m=STRAIGHT + np.array([0.0, 0.5]))
    assert result.ndtw == pytest.approx(math.exp(-0.5))


def test_dtw_equals_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.normal(size=(rng.integers(1, 9), 2)), rng.normal(size=(7, 2))
        assert metrics.dtw(first, second) == pytest.approx(brute_force_dtw(first, second))


def test_resample_keeps_ends_and_spacing():
    path = metrics.resample(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), 0.25)
    assert len(path) == 9
    assert path[0].tolist() == [0.0, 0.0] and path[-1].tolist() == [1.0, 1.0]
    assert np.allclose(np.linalg.norm(np.diff(path, axis=0), axis=1), 0.25)


def test_wilson_interval_against_published_values():
    assert metrics.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert metrics.wilson_interval(60, 100) == pytest.approx((0.5020, 0.6906), abs=1e-3)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)


def test_summary_counts_what_it_leaves_out():
    lost = judged(goal_distances_m=np.array([3.0, math.inf]), seed=2)
    summary = report.summarise([judged(), lost])
    assert summary["success_rate"] == 0.5
    assert summary["navigation_error_m"] == 0.0 and summary["num_unreachable"] == 1
    assert summary["collision_rate"] == pytest.approx(1 / 3)
    assert summary["intervals"]["success_rate"] == pytest.approx([0.0945, 0.9055], abs=1e-3)


def test_intervals_of_bounded_scores_stay_in_their_bounds():
    """Two of twelve arrived: the normal interval of this SPL began below zero."""
    episodes = [judged(stopped=number < 2) for number in range(12)]
    intervals = report.summarise(episodes)["intervals"]
    for key in ("spl", "ndtw", "sdtw"):
        low, high = intervals[key]
        assert 0.0 <= low <= high <= 1.0
    assert intervals["spl"][0] < 2 / 12 < intervals["spl"][1]
    assert intervals == report.summarise(episodes)["intervals"]  # the same numbers every time


def test_a_bootstrap_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(2).normal(0.5, 0.1, 400)
    low, high = metrics.mean_interval(values)
    spread = metrics.QUANTILE_95 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx(
        (values.mean() - spread, values.mean() + spread), abs=0.1 * spread
    )


def test_too_few_episodes_have_shares_intervals_and_none_of_means():
    summary = report.summarise([judged(), judged(stopped=False), judged()])
    assert summary["intervals"]["spl"] is None and summary["intervals"]["ndtw"] is None
    assert summary["intervals"]["success_rate"] == pytest.approx([0.2077, 0.9385], abs=1e-3)


@pytest.mark.parametrize(("count", "caption"), [(1, "1 episode,"), (2, "2 episodes,")])
def test_the_table_counts_in_good_grammar(count, caption):
    view = report.table(report.summarise([judged()] * count), "a title")
    assert view.title == "a title" and view.caption.startswith(caption)


def test_rows_are_json_without_infinities():
    row = report.episode_row(judged(goal_distances_m=np.array([3.0, math.inf])), note="x")
    assert row["navigation_error_m"] is None and row["note"] == "x"


@pytest.mark.parametrize(
    ("stopped", "distances_m", "kind"),
    [
        (True, [3.0, 0.5], None),
        (True, [0.5, 3.0], "stopped_after_passing_goal"),
        (True, [3.0, 3.0], "stopped_elsewhere"),
        (False, [3.0, 0.5], "no_stop_after_passing_goal"),
        (False, [3.0, 3.0], "no_stop_elsewhere"),
    ],
)
def test_failures_are_told_apart_and_counted(stopped, distances_m, kind):
    episode = judged(stopped=stopped, goal_distances_m=np.array(distances_m))
    assert report.failure_kind(episode) == kind
    assert report.summarise([episode])["failures"] == ({kind: 1} if kind else {})


def test_summary_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no episode"):
        report.summarise([])

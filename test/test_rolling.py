# SPDX-License-Identifier: Apache-2.0
"""Rolling figures: percentiles, rates, and the rate at the source of what arrives in part."""

import math

import pytest

from nvila_ros.rolling import Arrivals, Durations


def test_percentiles_of_the_newest_and_the_worst_ever():
    durations = Durations(capacity=10)
    assert math.isnan(durations.percentile_s(50.0))
    for value in (9.0, *range(10)):
        durations.add(float(value))
    assert durations.percentile_s(50.0) == pytest.approx(4.5)
    assert (durations.max_s, durations.count) == (9.0, 11)


def test_rate_and_age():
    arrivals = Arrivals(window_s=2.0)
    assert arrivals.age_s(0.0) == math.inf and arrivals.rate_hz(0.0) == 0.0
    for tick in range(100):
        arrivals.add(0.1 * tick, 0.1 * tick)
    assert arrivals.rate_hz(9.9) == pytest.approx(10.0, rel=0.1)
    assert arrivals.age_s(10.4) == pytest.approx(0.5)
    assert arrivals.rate_hz(20.0) == 0.0


def test_the_cameras_own_rate_is_seen_through_losses():
    arrivals = Arrivals(window_s=100.0)
    kept = [tick for tick in range(300) if tick % 10 < 2]  # four of five images are lost
    for tick in kept:
        arrivals.add(tick / 30, 1000.0 + tick / 30)
    assert arrivals.source_rate_hz() == pytest.approx(30.0, rel=0.01)
    assert arrivals.rate_hz(kept[-1] / 30) == pytest.approx(6.0, rel=0.1)


def test_without_stamps_the_source_is_unknown():
    arrivals = Arrivals()
    for tick in range(20):
        arrivals.add(0.1 * tick, 0.0)
    assert math.isnan(arrivals.source_rate_hz())

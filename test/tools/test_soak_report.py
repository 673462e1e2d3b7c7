# SPDX-License-Identifier: Apache-2.0
"""The soak's verdict: leaks, late commands and what ended it early are seen, noise is not."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from soak_report import SoakReport


def heard(intervals_s=(0.05,) * 1000):
    return SimpleNamespace(
        intervals_s=list(intervals_s), num_decisions=10, waiting_shares=[0.02], latency_s=[0.1]
    )


@pytest.fixture
def soaked(tmp_path):
    """A report of 60 episodes in an hour, with the memory that a function gives."""

    def make(navigator_mb, hear=heard, minutes=60.0, **judging):
        report = SoakReport(tmp_path / "report.json", minutes, **judging)
        for number in range(60):
            noise_mb = 15.0 * (number % 5)  # five apartments in turn
            memory = {"navigator_node": navigator_mb(number), "simulator_node": 250.0 + noise_mb}
            report.add(float(number + 1), 900_000 + number % 5, "SUCCEEDED", hear(), memory)
        report.is_over = True
        return report

    return make


def test_flat_memory_passes_and_its_slope_is_told(soaked):
    summary = soaked(lambda _number: 90.0).summary()
    assert summary["passed"] and summary["problems"] == []
    assert summary["episodes"] == 60 and summary["apartments"] == 5
    assert summary["results"] == {"SUCCEEDED": 60} and summary["decisions"] == 600
    slope = summary["memory_slope_mb_per_hour"]
    assert slope["navigator_node"]["slope"] == 0.0
    assert slope["total"]["low"] <= 0.0 <= slope["total"]["high"]


def test_a_leak_is_seen_in_the_process_that_has_it(soaked):
    summary = soaked(lambda number: 90.0 + 2.0 * number).summary()
    assert not summary["passed"] and "memory grew" in summary["problems"][0]
    slope = summary["memory_slope_mb_per_hour"]
    assert slope["navigator_node"]["slope"] == pytest.approx(120.0)
    assert slope["simulator_node"]["low"] <= 0.0 <= slope["simulator_node"]["high"]


def test_large_apartments_are_no_leak(tmp_path):
    """Ten episodes in five apartments: the last third met larger ones than the second."""
    report = SoakReport(tmp_path / "report.json", 20.0)
    for number in range(10):
        memory = {"simulator_node": 250.0 + 40.0 * (number % 5)}
        report.add(float(number), number % 5, "SUCCEEDED", heard(), memory)
    assert report.growth_mb() == 0.0


def test_late_commands_are_judged_unless_the_machine_is_shared(soaked):
    def late():
        return heard((0.05,) * 100 + (0.3,))

    summary = soaked(lambda _number: 90.0, late).summary()
    assert summary["late_commands"] == 60 and summary["worst_interval_s"] == 0.3
    assert not summary["passed"] and "late" in summary["problems"][0]
    shared = soaked(lambda _number: 90.0, late, judges_lateness=False).summary()
    assert shared["passed"] and shared["late_commands"] == 60


def test_what_ended_it_early_is_no_pass(soaked):
    report = soaked(lambda _number: 90.0)
    report.failure = "RuntimeError: navigator ended"
    assert report.summary()["problems"] == ["RuntimeError: navigator ended"]
    assert not report.summary()["passed"]


def test_nothing_is_no_pass_and_can_be_written(tmp_path):
    report = SoakReport(tmp_path / "report.json", 2.0)
    report.is_over = True
    report.write()
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["problems"] == ["no episode ended"] and not written["passed"]


def test_the_file_holds_every_episode_so_far_and_says_that_it_goes_on(soaked, tmp_path):
    report = soaked(lambda _number: 90.0)
    report.is_over = False
    report.write()
    written = json.loads((tmp_path / "report.json").read_text())
    assert len(written["each"]) == 60 and not written["passed"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]

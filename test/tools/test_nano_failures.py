# SPDX-License-Identifier: Apache-2.0
"""Why episodes failed: recorded motions are driven again, and how a drive ended is told."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.config import EvaluationConfig
from nvila_ros.evaluation.drivers import OracleDriver
from nvila_ros.evaluation.rollout import run_episode
from nvila_ros.sim.episodes import episode_from_seed

ROOT = Path(__file__).resolve().parents[2]
SEED = 900_000


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "nano_failures.py"
    spec = importlib.util.spec_from_file_location("nano_failures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nano_failures"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def driven():
    """The oracle's drive of one episode."""
    return run_episode(episode_from_seed(SEED), OracleDriver(), EvaluationConfig())


@pytest.fixture(scope="module")
def arrived(tool, driven):
    row = {"seed": SEED, "success": True, "stopped": True, "actions": list(driven.actions)}
    drive = tool.replay(row)
    drive.share = tool.look(drive)
    return drive


def test_recorded_motions_lead_where_the_drive_led(driven, arrived):
    np.testing.assert_allclose(arrived.end, driven.poses[-1], atol=1e-9)
    assert arrived.end_m == pytest.approx(driven.metrics.navigation_error_m)
    assert len(arrived.poses) == len(driven.actions) and arrived.regret.max() < 1e-6


def test_the_goal_is_in_view_where_the_oracle_stops(tool, arrived):
    assert arrived.share[-1] > tool.IN_VIEW and arrived.in_goal_room[-1]
    ahead = tool.piece_ahead(arrived.episode.scene.furniture, arrived.end)
    assert ahead is not None and ahead.key == arrived.goal.key


def test_how_a_drive_ended(tool, arrived):
    def told(**changes):
        return tool.kind(dataclasses.replace(arrived, **changes))

    far = np.full(len(arrived.poses), 4.0)
    assert told() == "arrived"
    assert told(succeeded=False, stopped=False) == "never stopped"
    assert told(succeeded=False) == "passed the goal"
    assert told(succeeded=False, distance_m=far) == "right piece, but too far"
    behind = arrived.end + np.array([0.0, 0.0, np.pi])
    turned = told(succeeded=False, distance_m=far, end=behind)
    assert turned in (
        "stopped before another piece in the right room",
        "stopped in the right room before nothing",
        "same piece in another colour",
    )


def test_full_turns_are_to_one_side_and_on_the_spot(tool):
    assert tool.full_turns(np.array([6] * 7 + [0])) == 1
    assert tool.full_turns(np.array([9] * 8 + [1] + [9] * 8)) == 2
    assert tool.full_turns(np.array([6, 6, 6, 9, 9, 9, 6, 6, 1, 6, 6])) == 0


def test_six_decisions_tell_a_drive(tool, arrived):
    chosen = tool.telling_decisions(arrived)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(6, len(arrived.actions))
    assert chosen[0] == 0 and chosen[-1] == len(arrived.actions) - 1


def test_a_summary_counts_and_a_sheet_is_drawn(tool, arrived, tmp_path):
    failed = dataclasses.replace(arrived, succeeded=False)
    text = tool.summary([arrived, failed])
    assert text.startswith("2 episodes, 1 failures") and "passed the goal" in text
    assert "stops with the goal in view True: 1 of 2 arrive" in text
    (path,) = tool.save_sheets([failed], tmp_path / "pictures")
    assert path.stat().st_size > 10_000

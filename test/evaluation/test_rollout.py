# SPDX-License-Identifier: Apache-2.0
"""Closed loop without ROS: the oracle arrives, the controls take what they say, runs repeat."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import ConfigError
from nvila_ros.evaluation import pool
from nvila_ros.evaluation.drivers import OracleDriver
from nvila_ros.evaluation.episode_units import read_rollout, to_json
from nvila_ros.evaluation.pool import EvaluationJob, evaluate
from nvila_ros.evaluation.rollout import run_episode
from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.motion import STOP

SEED = 900_000
FORWARD_75_CM = 3
CONFIG = EvaluationConfig(image_side_px=32, max_decisions=6)


class Script:
    """A driver that plays fixed motions and remembers what it was shown."""

    needs_camera = True
    probabilities = (0.1,) * 10

    def __init__(self, motions):
        self.motions = list(motions)
        self.frames, self.poses, self.stamps_s, self.instruction = [], [], [], None

    def start(self, instruction, planner):
        self.instruction = instruction

    def see(self, rgb, pose, stamp_s):
        self.frames.append(rgb)
        self.poses.append(pose)
        self.stamps_s.append(stamp_s)

    def choose(self):
        return self.motions.pop(0), 0.5


@pytest.fixture(scope="module")
def episode():
    return episode_from_seed(SEED)


def test_oracle_reaches_the_goal(episode):
    rollout = run_episode(episode, OracleDriver(), EvaluationConfig())
    assert rollout.metrics.success and rollout.metrics.spl > 0.8
    assert rollout.actions[-1] == STOP
    assert rollout.metrics.num_decisions == len(rollout.actions) == len(rollout.latencies_s)
    assert rollout.metrics.num_primitives == len(rollout.actions) - 1


def test_one_frame_is_seen_per_unit_of_motion(episode):
    driver = Script([4, 6, 7, STOP])  # left 15, left 45, right 15 degrees
    rollout = run_episode(episode, driver, CONFIG)
    assert len(driver.frames) == 1 + 1 + 3 + 1
    assert len(rollout.poses) == len(driver.frames)
    np.testing.assert_array_equal(rollout.poses, np.stack(driver.poses))
    assert driver.frames[0].shape == (32, 32, 3) and driver.frames[0].std() > 5
    assert driver.stamps_s[0] == 0.0 and np.all(np.diff(driver.stamps_s) >= 0.0)


def test_no_stop_ends_as_a_failure_after_the_last_decision(episode):
    driver = Script([4, 7] * CONFIG.max_decisions)
    metrics = run_episode(episode, driver, CONFIG).metrics
    assert metrics.num_decisions == CONFIG.max_decisions
    assert not metrics.stopped and not metrics.success


def test_blind_control_shows_black_frames(episode):
    driver = Script([FORWARD_75_CM, STOP])
    run_episode(episode, driver, CONFIG, blind=True)
    assert all(frame.shape == (32, 32, 3) and frame.max() == 0 for frame in driver.frames)


def test_what_a_decision_saw_is_kept_on_demand(episode):
    rollout = run_episode(episode, Script([4, STOP]), CONFIG, keeps_frames=True)
    assert rollout.places == (0, 1) and rollout.probabilities == ((0.1,) * 10,) * 2
    pictures = [Image.open(io.BytesIO(frame)) for frame in rollout.frames]
    assert len(pictures) == 2 and all(picture.size == (32, 32) for picture in pictures)
    assert np.asarray(pictures[0]).std() > 5 and rollout.frames[0] != rollout.frames[1]
    assert not run_episode(episode, Script([STOP]), CONFIG).frames
    oracle = run_episode(episode, OracleDriver(), CONFIG, keeps_frames=True)  # has no camera itself
    assert len(oracle.frames) == len(oracle.actions)


def test_a_rollout_survives_its_file(episode, tmp_path):
    rollout = run_episode(episode, Script([4, STOP]), CONFIG, keeps_frames=True)
    path = tmp_path / "rollout.json"
    path.write_text(json.dumps(to_json(rollout)))
    read = read_rollout(path)
    assert (read.frames, read.places) == (rollout.frames, rollout.places)
    assert read.probabilities == rollout.probabilities and read.metrics == rollout.metrics


def test_another_instruction_replaces_the_own_one(episode):
    driver = Script([STOP])
    rollout = run_episode(episode, driver, CONFIG, instruction="Go somewhere else.")
    assert driver.instruction == rollout.instruction == "Go somewhere else."


def test_running_into_something_is_counted(episode):
    config = dataclasses.replace(CONFIG, max_decisions=30)
    metrics = run_episode(episode, Script([FORWARD_75_CM] * 30), config).metrics
    assert metrics.num_collisions > 0


def test_pool_gives_the_same_as_one_process_and_in_order():
    job = EvaluationJob(seeds=(SEED, SEED + 1), driver="oracle")
    seen = []
    alone = evaluate(job, 1)
    together = evaluate(job, 2, seen.append)
    assert [rollout.metrics for rollout in together] == [rollout.metrics for rollout in alone]
    assert [rollout.metrics.seed for rollout in together] == list(job.seeds)
    assert len(seen) == 2


def test_deaf_control_borrows_the_next_instruction():
    job = EvaluationJob(seeds=(SEED, SEED + 1), driver="oracle", control="deaf")
    first, second = evaluate(job, 1)
    assert first.instruction == second.episode.instruction
    assert second.instruction == first.episode.instruction


def test_deaf_control_of_a_single_episode_borrows_too():
    assert EvaluationJob(seeds=(5,), driver="oracle").borrowed_seed(0) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": ()},
        {"control": "mute"},
        {"driver": "model", "model_path": None},
        {"mirrors": True},
        {"asks": True},
        {"asks": True, "mirrors": True, "driver": "model", "model_path": Path("nano")},
    ],
)
def test_impossible_jobs_are_refused(changes):
    with pytest.raises(ConfigError):
        EvaluationJob(**{"seeds": (1,), "driver": "oracle", **changes})


def test_never_more_workers_than_episodes():
    assert pool.usable_workers(8, 3) == 3
    assert pool.usable_workers(None, 1) == 1

# SPDX-License-Identifier: Apache-2.0
"""The policy in a process of its own: the same answers; what happens there stays there."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.config import HistoryConfig
from nvila_ros.errors import CheckpointError, InstructionError
from nvila_ros.policy import NavigationPolicy
from nvila_ros.policy_process import MAX_WAITING_MESSAGES, ModelProcessError, PolicyProcess

HISTORY = HistoryConfig()


@pytest.fixture(scope="module")
def arguments(tiny_folder):
    return {"folder": str(tiny_folder), "device": "cpu", "history": HISTORY}


@pytest.fixture(scope="module")
def process(arguments):
    made = PolicyProcess(HISTORY.num_frames, arguments).wait_until_loaded()
    yield made
    made.kill()


@pytest.fixture
def doomed(arguments):
    """A process that a test may kill."""
    made = PolicyProcess(HISTORY.num_frames, arguments).wait_until_loaded()
    yield made
    made.kill()


def drive(policy, count=3):
    noise = np.random.default_rng(1)
    policy.reset("Go through the red door.")
    for step in range(count):
        policy.observe(noise.integers(0, 255, (24, 32, 3), np.uint8), 0.3 * step, 0.0, 0.0, step)
    return policy.decide()


def test_it_answers_as_the_policy_itself(process, arguments):
    here, there = drive(NavigationPolicy.load(**arguments)), drive(process)
    assert there.index == here.index and there.frame_indices == here.frame_indices
    assert there.probabilities == pytest.approx(here.probabilities, abs=1e-5)
    assert there.pose == here.pose == (0.6, 0.0, 0.0)
    process.tried(there)
    assert process.prepare() >= 0
    assert process.strip()[:2] == b"\xff\xd8"  # JPEG


def test_its_threads_sleep_while_they_wait(process):
    """Spinning ones made a decision last seconds where other processes wanted the cores."""
    told = Path(f"/proc/{process._process.pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=" + os.environb.get(b"OMP_WAIT_POLICY", b"passive") in told


@pytest.mark.parametrize("text", ["", "go <image>", "<|im_end|>"])
def test_instructions_are_checked_here_at_once(process, text):
    with pytest.raises(InstructionError):
        process.reset(text)


def test_what_the_model_raises_arrives(process):
    process.reset("Go.")
    with pytest.raises(Exception, match="no image"):
        process.decide()
    assert drive(process).confidence > 0.0


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    made = PolicyProcess(8, {"folder": str(tmp_path / "nowhere"), "history": HISTORY})
    with pytest.raises(CheckpointError, match="nowhere"):
        made.wait_until_loaded()
    assert not made.is_alive()


def test_its_death_is_an_error_and_nothing_more(doomed):
    os.kill(doomed.process_id, signal.SIGKILL)
    with pytest.raises(ModelProcessError, match="ended"):
        doomed.decide()
    assert not doomed.is_alive()


def test_one_that_stands_still_never_keeps_the_node_waiting(doomed):
    doomed.reset("Go.")
    os.kill(doomed.process_id, signal.SIGSTOP)
    picture = np.zeros((480, 640, 3), np.uint8)
    begin_s = time.monotonic()
    taken = [doomed.observe(picture, 0.0, 0.0, 0.0, 1.0) for _ in range(MAX_WAITING_MESSAGES + 9)]
    assert time.monotonic() - begin_s < 1.0
    assert not taken[-1] and doomed.num_dropped_images > 0
    doomed.kill()
    assert not Path(f"/proc/{doomed.process_id}").exists()

# SPDX-License-Identifier: Apache-2.0
"""Replay: the policy sees what was recorded up to each decision, and differences are counted."""

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.decision import Decision
from nvila_ros.errors import DataError
from nvila_ros.recording.bag_episodes import cut_episodes
from nvila_ros.recording.bag_reader import read_recording
from nvila_ros.recording.replay import replay, summary


class Policy:
    """Says what it is told to, and remembers what it was shown."""

    def __init__(self, answers):
        self.answers, self.seen, self.tries, self.instructions = list(answers), [], [], []
        self.newest_s = []

    def reset(self, instruction):
        self.instructions.append(instruction)

    def observe(self, rgb, x_m, y_m, yaw_rad, stamp_s):
        assert rgb.dtype == np.uint8 and np.isfinite([x_m, y_m, yaw_rad]).all()
        self.seen.append((stamp_s, x_m))
        return True

    def decide(self):
        self.newest_s.append(self.seen[-1][0])
        return Decision(
            action=ACTIONS[self.answers.pop(0)],
            confidence=0.5,
            probabilities=(0.5, 0.5, *[0.0] * 8),
            latency_s=0.01,
            num_encoded_frames=1,
            frame_indices=(),
            stamp_s=self.seen[-1][0],
            pose=(0.0, 0.0, 0.0),
        )

    def tried(self, decision):
        self.tries.append(decision.index)


def test_agreement_and_differences(model_drive):
    recording = read_recording(model_drive)
    policy = Policy([5, 2, 7, 4])
    found = replay(recording, cut_episodes(recording), policy)
    assert policy.instructions == ["Go to the sofa."]
    assert policy.tries == [5, 3, 7, 0]  # what was driven, not what was said now
    wanted_s = [said.row["stamp_s"] for said in recording.decisions]
    assert policy.newest_s == pytest.approx(wanted_s, abs=1e-6)
    assert policy.seen[0][0] > recording.instructions[0].log_s - 1e-6  # nothing from before
    result = summary(found)
    assert result["agreement"] == 0.5 and result["kind_agreement"] == 0.75
    assert result["mean_distance"] == pytest.approx(0.8)
    assert {row["count"] for row in result["differences"]} == {1}
    low, high = result["agreement_interval"]
    assert 0.1 < low < 0.5 < high < 0.9


def test_a_cut_bag_is_replayed_as_far_as_it_goes(model_drive, tmp_path):
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(model_drive.read_bytes()[: int(0.7 * model_drive.stat().st_size)])
    recording = read_recording(cut)
    found = replay(recording, cut_episodes(recording), Policy([5, 3, 7, 0]))
    assert 0 < len(found.decisions) < 4


def test_a_bag_without_decisions_is_named(bag):
    bag.say("Go.")
    bag.rest()
    recording = read_recording(bag.close())
    with pytest.raises(DataError, match="holds no decisions"):
        replay(recording, cut_episodes(recording), Policy([]))

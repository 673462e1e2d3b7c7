# SPDX-License-Identifier: Apache-2.0
"""The trainer shows the frames that the driving policy would show, and forgets overwritten ones."""

import numpy as np
import pytest
import torch

from nvila_ros.history import FrameHistory
from nvila_ros.training.replay import EpisodeRecord, FrameRing, Replay, history_indices


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9, 20, 100])
def test_history_indices_are_those_of_the_driving_history(num_frames):
    history = FrameHistory()
    for step in range(num_frames):
        history.append(np.full((2, 2, 3), step, np.uint8), 0.25 * step, 0.0, 0.0, float(step))
    expected = [-1 if frame is None else frame.index for frame in history.select()]
    assert history_indices(num_frames).tolist() == expected


def _ring(capacity):
    return FrameRing(capacity, 2, torch.device("cpu"), (1, 1))


def test_a_ring_keeps_the_black_slot_and_the_newest_frames():
    ring = _ring(5)
    frames = np.arange(1, 8, dtype=np.uint8)[:, None, None, None] * np.ones((7, 2, 2, 3), np.uint8)
    tickets = ring.put(frames)
    assert ring.pixels[0].sum() == 0
    assert ring.pixels[ring.slots(tickets[-1:])[0], 0, 0, 0] == 7


def test_an_overwritten_episode_is_forgotten():
    ring = _ring(6000)
    replay = Replay(ring)
    record = EpisodeRecord(np.zeros(3, np.int64))
    record.tickets += ring.put(np.zeros((2, 2, 2, 3), np.uint8)).tolist()
    record.shown.append(record.show())
    replay.add_episode(record)
    replay.forget()
    assert replay.num_decisions == 1
    ring.put(np.zeros((3000, 2, 2, 3), np.uint8))
    replay.forget()
    assert replay.num_decisions == 0 and not replay.episodes

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


def _frames(count):
    return torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)


def test_a_ring_keeps_the_black_slot_and_the_newest_frames():
    ring = _ring(5)
    for part in _frames(9).split(3):
        tickets = ring.put(part)
        slots = ring.slots(tickets)
        assert 0 not in slots
        assert ring.pixels[slots, 0, 0, 0].tolist() == part[:, 0, 0, 0].tolist()
    assert ring.pixels[0].sum() == 0


def _episode(tickets):
    count = len(tickets)
    shown = np.stack([np.append(np.zeros(7, np.int64), ticket) for ticket in tickets])
    return EpisodeRecord.from_shown(
        np.zeros(3, np.int16),
        3,
        shown,
        np.zeros((count, 10), np.float32),
        np.zeros((count, 3), np.float32),
        np.zeros(count, np.int64),
    )


def test_decisions_name_the_rows_of_their_frames():
    episode = _episode([7, 9])
    assert episode.tickets.tolist() == [7, 9]
    assert episode.shown.tolist() == [[-1] * 7 + [0], [-1] * 7 + [1]]


def test_an_overwritten_episode_is_forgotten():
    ring = _ring(600)
    replay = Replay(ring)
    replay.add([_episode(ring.put(_frames(2)))], [])
    replay.forget()
    assert replay.num_decisions == 2
    for part in _frames(500).split(100):
        ring.put(part)
    replay.forget()
    assert replay.num_decisions == 0 and not replay.episodes


def test_sampled_episodes_differ_and_fit_the_batch():
    ring = _ring(600)
    replay = Replay(ring)
    replay.add([_episode(ring.put(_frames(4))) for _ in range(30)], [])
    rng = np.random.default_rng(0)
    chosen = replay.sample_episodes(rng, num_decisions=40, num_frames=1000)
    assert len(chosen) == 10 == len({id(episode) for episode in chosen})
    few = replay.sample_episodes(rng, num_decisions=40, num_frames=14)
    assert sum(len(episode.tickets) for episode in few) <= 13

# SPDX-License-Identifier: Apache-2.0
"""Floor plan: the paths stand where they were driven."""

import numpy as np

from nvila_ros.evaluation import floor_plan
from nvila_ros.sim.episodes import episode_from_seed


def count(picture, colour) -> int:
    return int((np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1) < 12).sum())


def test_plan_shows_both_paths_start_and_goal():
    episode = episode_from_seed(900_000)
    empty = floor_plan.draw_floor_plan(episode)
    driven = np.array([episode.start[:2], episode.goal])
    full = floor_plan.draw_floor_plan(episode, driven, result="success")
    assert count(full, floor_plan.DRIVEN) > count(empty, floor_plan.DRIVEN) + 500
    for colour in (floor_plan.ORACLE, floor_plan.START, floor_plan.GOAL):
        assert count(empty, colour) > 100
    width, height = full.size
    assert width % 2 == 0 and height % 2 == 0 and height > empty.size[1]

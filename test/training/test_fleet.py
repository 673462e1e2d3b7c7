# SPDX-License-Identifier: Apache-2.0
"""A fleet drives by the oracle, and its labels say what is there."""

import numpy as np
import pytest

from nvila_ros.sim.motion import STOP
from nvila_ros.training.fleet import Fleet
from nvila_ros.training.fleet_settings import EXAM, ORACLE, STUDENT, FleetSettings
from nvila_ros.training.path_progress import PathProgress
from nvila_ros.training.view_labels import CATEGORY_NAMES, COLOUR_NAMES
from nvila_ros.training.vocabulary import build_sequences

SETTINGS = FleetSettings(num_robots=3, view_share=1.0, noise_levels=(0.0,))


@pytest.fixture(scope="module")
def drive():
    frames = np.zeros((3, SETTINGS.max_frames, 192, 192, 3), np.uint8)
    fleet = Fleet(12, SETTINGS, frames, build_sequences())
    steps = []
    while fleet.active.any():
        steps.append(fleet.labels())
        fleet.advance(steps[-1], None)
    fleet.close()
    return fleet, frames, steps


def test_oracle_robots_arrive(drive):
    fleet, _, _ = drive
    assert (fleet.driver == ORACLE).all() and fleet.success.all()


def test_every_frame_is_sent_once_and_holds_a_picture(drive):
    fleet, frames, steps = drive
    sent = {robot: [] for robot in range(3)}
    for step in steps:
        for robot, first, last in zip(step.robots, step.first_frame, step.last_frame, strict=True):
            sent[robot] += range(first, last + 1)
    for robot, indices in sent.items():
        assert indices == list(range(fleet.num_frames[robot]))
        assert all(frames[robot, index].std() > 5 for index in indices)


def test_costs_prefer_stop_only_at_the_end(drive):
    _, _, steps = drive
    best = {robot: [] for robot in range(3)}
    for step in steps:
        for robot, costs in zip(step.robots, step.costs, strict=True):
            best[robot].append(int(costs.argmin()))
    for actions in best.values():
        assert actions[-1] == STOP and STOP not in actions[:-1]


def test_clauses_are_worked_through_in_order(drive):
    _, _, steps = drive
    under_way = {robot: [] for robot in range(3)}
    for step in steps:
        for robot, clause in zip(step.robots, step.clause, strict=True):
            under_way[robot].append(int(clause))
    for clauses in under_way.values():
        assert clauses == sorted(clauses)


def test_views_are_labelled_with_known_things(drive):
    _, _, steps = drive
    views = [view for step in steps for view in step.views]
    assert len(views) == sum(len(step.robots) for step in steps)
    categories = np.concatenate([view.patch_category for view in views])
    colours = np.concatenate([view.patch_colour for view in views])
    assert categories.max() < len(CATEGORY_NAMES) and colours.max() < len(COLOUR_NAMES)
    named = {CATEGORY_NAMES[index] for index in categories}
    assert {"floor", "wall", "ceiling"} <= named
    assert all(view.supervised.any() for view in views)


def test_a_failed_episode_is_met_again_under_the_restraint():
    settings = FleetSettings(num_robots=2, num_rounds=2, exam_share=1.0, view_share=0.0)
    frames = np.zeros((2, settings.max_frames, 192, 192, 3), np.uint8)
    fleet = Fleet(12, settings, frames, build_sequences())
    assert (fleet.driver == EXAM).all() and fleet.greedy.all()
    first = fleet.labels()
    assert first.allowed.all() and (first.shown[:, :7] == -1).all()
    fleet.advance(first, np.full(2, 4))  # 15 degrees left: no turn to the right is offered after it
    second = fleet.labels()
    assert not second.allowed[:, 7:].any()
    fleet.advance(second, np.full(2, STOP))  # far from the goal
    assert not fleet.active.any() and not fleet.success.any()
    failed = list(fleet.episodes)
    assert fleet.begin_round(settings)
    assert fleet.episodes[0] is failed[0] and fleet.driver[0] == STUDENT
    # An episode that is failed for ever used to keep its apartment for ever.
    while fleet.active.any():
        fleet.advance(fleet.labels(), np.full(int(fleet.active.sum()), 4))
    assert fleet.failed and not fleet.begin_round(settings) and not fleet.episodes
    fleet.close()


def test_progress_never_goes_back():
    class Clause:
        def __init__(self, arc_m):
            self.arc_m = arc_m

    class Episode:
        path = ((0.0, 0.0), (4.0, 0.0))
        clauses = (Clause(1.0), Clause(4.0))

    progress = PathProgress(Episode())
    arc_m = progress.advance(np.array([1.5, 0.2, 0.0]), 0.0)
    assert arc_m == pytest.approx(1.5, abs=0.06) and progress.clause(arc_m) == 1
    assert progress.advance(np.array([0.5, 0.0, 0.0]), arc_m) == arc_m

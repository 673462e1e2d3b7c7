# SPDX-License-Identifier: Apache-2.0
"""Twins: the same frames under another instruction, labelled as if it were the robot's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvila_ros.sim import motion
from nvila_ros.sim.motion import STOP
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.sight import Sight
from nvila_ros.training.ablation.corpus import DriveCollector
from nvila_ros.training.batches import BatchMaker
from nvila_ros.training.collector import Collector
from nvila_ros.training.fleet import Fleet
from nvila_ros.training.fleet_pool import Step, _finished, _started
from nvila_ros.training.fleet_settings import ORACLE, FleetSettings
from nvila_ros.training.path_progress import PathProgress
from nvila_ros.training.recipe import NanoRecipe, Stage
from nvila_ros.training.replay import FrameRing, Replay
from nvila_ros.training.searching import SEARCH_TURN_RAD, SearchingTeacher, search_costs
from nvila_ros.training.twins import FARTHER_M, LOST_M, Twins
from nvila_ros.training.vocabulary import build_sequences

SEED = 52
SIZE_PX = 8


def settings_of(num_twins, num_robots=4, **more):
    return FleetSettings(
        num_robots=num_robots,
        num_rounds=1,
        image_size_px=SIZE_PX,
        view_share=0.0,
        searches=True,
        num_twins=num_twins,
        **more,
    )


def store_numbers(fleet, robots, slots, poses):
    """Nothing is rendered: a frame holds its robot's and its own number."""
    if len(robots):
        fleet.teacher.saw(robots, slots, poses)
        if fleet.frames is not None:
            fleet.frames[robots, slots] = (16 * robots + slots % 16)[:, None, None, None]


@pytest.fixture(scope="module")
def unrendered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fleet, "_store", store_numbers)
        yield


def drive(num_twins, seed=SEED, num_robots=4, **more):
    """A round of a fleet: the fleet, its messages, and each robot's pose at every step."""
    settings = settings_of(num_twins, num_robots, **more)
    shape = (num_robots, settings.max_frames, SIZE_PX, SIZE_PX, 3)
    fleet = Fleet(seed, settings, np.zeros(shape, np.uint8), build_sequences())
    steps, poses = [], []
    while fleet.active.any():
        poses.append(fleet.poses.copy())
        steps.append(fleet.labels())
        fleet.advance(steps[-1], None)
    fleet.close()
    return fleet, steps, poses


@pytest.fixture(scope="module")
def driven(unrendered):
    return drive(1)


def test_there_are_none_by_default_and_they_change_nothing_of_the_robots(driven, unrendered):
    assert FleetSettings().num_twins == 0
    fleet, steps, _ = drive(0)
    assert not fleet.twins.episodes and all(step.twins is None for step in steps)
    assert [e.instruction for e in fleet.episodes] == [e.instruction for e in driven[0].episodes]
    assert len(steps) == len(driven[1])
    for step, other in zip(steps, driven[1], strict=True):
        for name in ("robots", "costs", "targets", "distance_m", "clause", "shown", "allowed"):
            assert np.array_equal(getattr(step, name), getattr(other, name))


def test_each_robot_has_one_that_starts_where_it_does_and_has_another_goal(driven):
    fleet, _, _ = driven
    assert fleet.twins.robot_of.tolist() == list(range(4))
    for robot, twin in zip(fleet.twins.robot_of, fleet.twins.episodes, strict=True):
        own = fleet.episodes[robot]
        assert twin.start == own.start and twin.goal_furniture_id != own.goal_furniture_id
        assert twin.instruction != own.instruction and fleet.sequences.fits(twin.instruction)
        assert np.allclose(fleet.planner.goals[fleet.goal_index[4 + robot]], twin.goal, atol=1e-3)


def test_exams_have_none(unrendered):
    fleet = Fleet(SEED, settings_of(1, exam_share=1.0), None, build_sequences())
    fleet.close()
    assert not fleet.twins.episodes and len(fleet.told) == 4


def test_labels_are_those_of_a_robot_that_had_been_told_so(driven):
    """A planner, a way and a teacher of its own, at the poses that its robot drove through."""
    fleet, steps, poses = driven
    for twin, episode in enumerate(fleet.twins.episodes):
        robot, planner = int(fleet.twins.robot_of[twin]), Planner(fleet.grid, [episode.goal])
        way, arc_m = PathProgress(episode), 0.0
        teacher = SearchingTeacher(fleet.scene, Sight(fleet.world))
        teacher.start([episode], fleet.settings.max_frames)
        teacher._poses[0] = fleet.teacher._poses[robot]
        num_compared = 0
        for step, at in zip(steps, poses, strict=True):
            if step.twins is None or 4 + twin not in step.twins.rows:
                break
            row = int(np.flatnonzero(step.twins.rows == 4 + twin)[0])
            place = int(step.twins.position[row])
            assert step.robots[place] == robot
            pose, shown = at[robot][None], step.shown[place][None]
            arc_m = way.advance(pose[0], arc_m)
            clause, first = np.array([way.clause(arc_m)]), np.array([0])
            costs = np.minimum(planner.action_costs(pose), 1e3)
            aim = planner.trace(pose, 8)[0, -1] - pose[0, :2]
            bearing_rad = motion.wrap(np.arctan2(aim[1], aim[0]) - pose[0, 2])
            side = teacher.sides(first, clause, shown, costs.argmin(1))
            if side[0]:
                costs, bearing_rad = search_costs(side), side[0] * SEARCH_TURN_RAD
            sighting = teacher.sightings(first, clause, step.last_frame[[place]])[0]
            distance = np.log1p(planner.distance_m(pose)[0])
            expected = [np.sin(bearing_rad), np.cos(bearing_rad), distance, *sighting]
            assert step.twins.clause[row] == clause[0]
            assert step.twins.costs[row] == pytest.approx(costs[0], rel=1e-4, abs=1e-4)
            assert step.twins.targets[row] == pytest.approx(expected, abs=1e-4)
            num_compared += 1
        assert num_compared >= 3


def test_their_labels_end_where_they_should_stop(driven):
    fleet, steps, _ = driven
    best = {}
    for step in steps:
        if step.twins is not None:
            for row, costs in zip(step.twins.rows, step.twins.costs, strict=True):
                best.setdefault(int(row), []).append(int(costs.argmin()))
    assert all(STOP not in actions[:-1] for actions in best.values())
    assert (fleet.twins.num_different > 0).any()


@pytest.mark.parametrize("seed", [SEED, 880_301, 880_302])
def test_whoever_follows_the_planner_from_the_start_arrives(unrendered, seed):
    fleet = Fleet(seed, settings_of(2, num_robots=6), None, build_sequences())
    fleet.close()
    assert len(fleet.twins.episodes) >= 8
    goals = fleet.twins.goal_index(fleet.planner)
    poses = np.array([twin.start for twin in fleet.twins.episodes])
    is_under_way = np.ones(len(poses), bool)
    for _ in range(60):
        best = fleet.planner.best(poses, goals)
        is_under_way &= best != STOP
        poses[is_under_way] = motion.apply(
            fleet.grid, poses[is_under_way], best[is_under_way]
        ).unit_poses[:, -1]
        if not is_under_way.any():
            break
    left_m = [
        np.linalg.norm(p[:2] - t.goal) for p, t in zip(poses, fleet.twins.episodes, strict=True)
    ]
    assert not is_under_way.any() and max(left_m) < 0.5


@pytest.fixture
def twins(driven):
    """One twin, of robot 0, whose labels are made up."""
    found = Twins(SimpleNamespace(scene=driven[0].scene), None, None, None)
    found._begin([0], driven[0].twins.episodes[:1])
    found._num_robots = 1
    return found


def labels_of(twins, pose, best=3, distance_m=2.0, clause=0, arc_m=0.0):
    costs = np.full((2, 10), 5.0, np.float32)
    costs[0, 4] = costs[1, best] = 1.0
    rows = twins.append_to(np.array([0]))
    return twins.labels(
        rows,
        np.stack([pose, pose]),
        np.array([0.0, arc_m]),
        costs,
        np.zeros((2, 6), np.float32),
        np.array([0, clause]),
        np.array([2.0, distance_m]),
    )


def test_a_stop_counts_and_ends_it(twins):
    start = np.array(twins.episodes[0].start)
    assert len(labels_of(twins, start, STOP).rows) == 1
    assert not twins.active.any() and twins.append_to(np.array([0])).tolist() == [0]
    assert twins.num_different.tolist() == [1] and twins.is_telling().all()


def test_who_is_too_far_from_its_goal_is_cut(twins):
    episode = twins.episodes[0]
    start, far_m = np.array(episode.start), episode.geodesic_m + FARTHER_M
    assert len(labels_of(twins, start, distance_m=far_m - 0.01).rows) == 1
    assert len(labels_of(twins, start, distance_m=far_m + 0.01).rows) == 0
    assert not twins.active.any()


def test_who_is_off_its_way_is_cut_but_not_in_the_goals_room_at_the_end(twins):
    episode = twins.episodes[0]
    goal, last = np.array([*episode.goal, 0.0]), len(episode.clauses) - 1
    assert np.linalg.norm(goal[:2] - episode.start[:2]) > LOST_M
    assert len(labels_of(twins, goal, clause=last).rows) == 1  # the way was followed to its start
    assert len(labels_of(twins, goal, clause=0).rows) == 0


class Pool:
    """A fleet's frames, and an end of the line for answers."""

    def __init__(self, frames):
        self.frames, self.messages, self.answers = [frames], [], []

    def poll(self, timeout_s):
        messages, self.messages = self.messages, []
        return messages

    def answer(self, worker, reply):
        self.answers.append(reply)


def collected(kind, driven):
    fleet, steps, _ = driven
    ring = FrameRing(600, SIZE_PX, torch.device("cpu"), (1, 1))
    pool = Pool(fleet.frames)
    collector = kind(pool, Replay(ring), None, lambda: fleet.settings)
    messages = [_started(fleet, fleet.sequences)]
    messages += [Step(step, False) for step in steps] + [_finished(fleet)]
    for message in messages:
        pool.messages.append((0, message))
        collector.collect()
    return collector


def test_their_records_show_their_robots_frames_under_their_own_words(driven):
    fleet, _, _ = driven
    collector = collected(Collector, driven)
    records = list(collector.replay.episodes)
    kept = np.flatnonzero(fleet.twins.is_telling())
    assert len(records) == 4 + len(kept) and collector.num_episodes == 4
    assert collector.num_twin_decisions == sum(r.num_decisions for r in records[4:]) > 0
    for twin, record in zip(kept, records[4:], strict=True):
        own, count = records[fleet.twins.robot_of[twin]], record.num_decisions
        assert np.array_equal(_shown(record), _shown(own)[:count])
        prompt = fleet.sequences.navigation_prompt(fleet.twins.episodes[twin].instruction)
        assert np.array_equal(record.prompt_ids[: record.prompt_length], prompt)
        assert (record.costs.argmin(1) != own.costs[:count].argmin(1)).any()


def _shown(record):
    return np.where(record.shown < 0, 0, record.tickets[record.shown])


def test_a_twin_that_is_hardly_unlike_its_robot_is_left_out(driven, monkeypatch):
    monkeypatch.setattr(driven[0].twins, "num_different", np.array([0, 2, 1, 3]))
    monkeypatch.setattr(driven[0].twins, "stops_apart", np.array([False, False, True, False]))
    assert len(collected(Collector, driven).replay.episodes) == 6


def test_drives_of_an_ablation_say_whose_they_are(driven):
    collector = collected(DriveCollector, driven)
    twins = [drive for drive in collector.drives if drive.is_twin]
    assert len(collector.drives) - len(twins) == 4 and twins
    for found, record in zip(collector.drives, collector.replay.episodes, strict=True):
        assert found.record is record and found.driver == ORACLE
        assert len(found.last_frame) == record.num_decisions
        newest = found.tickets[found.last_frame]
        assert np.array_equal(_shown(record)[:, -1], newest)


def test_batches_take_them(driven):
    collector = collected(Collector, driven)
    recipe = NanoRecipe(1.0, (Stage("drive", 1.0),), num_decisions=120, num_frames=500, num_views=0)
    maker = BatchMaker(collector.replay, driven[0].sequences, recipe, torch.device("cpu"), 4)
    rng = np.random.default_rng(0)
    episodes = collector.replay.sample_episodes(rng, 120, 500)
    arrays = maker._decisions(rng, episodes)
    total = min(120, sum(episode.num_decisions for episode in episodes))
    assert (arrays["weight"] > 0).sum() == total > 90

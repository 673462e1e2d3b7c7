# SPDX-License-Identifier: Apache-2.0
"""A teacher that asks for nothing which its frames do not show."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.motion import MOTIONS, STOP, TURN_RAD
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.sight import Sight
from nvila_ros.sim.world import World
from nvila_ros.training.fleet import Fleet
from nvila_ros.training.fleet_settings import FleetSettings
from nvila_ros.training.searching import (
    LOOKED_M,
    MAX_SEARCHES,
    SearchingTeacher,
    search_costs,
)
from nvila_ros.training.vocabulary import build_sequences

FORWARD, LEFT = 3, 6  # of the motions: 75 cm, 45 degrees


@pytest.fixture(scope="module")
def episode():
    return episode_from_seed(880_001)


@pytest.fixture
def teacher(episode):
    teacher = SearchingTeacher(episode.scene, Sight(World(episode.scene)))
    teacher.start([episode], 8)
    return teacher


def before_goal(episode, away):
    """The last metre of the way, facing the goal's piece or away from it."""
    piece = next(p for p in episode.scene.furniture if p.id == episode.goal_furniture_id)
    x_m, y_m = episode.goal
    bearing_rad = math.atan2(piece.y_m - y_m, piece.x_m - x_m)
    return np.array([x_m, y_m, bearing_rad + (math.pi if away else 0.0)])


def side(teacher, clause, best, frames=1):
    shown = np.array([[-1] * (8 - frames) + list(range(frames))])
    return teacher.sides(np.array([0]), np.array([clause]), shown, np.array([best]))[0]


def test_it_looks_round_only_for_what_no_frame_shows(teacher, episode):
    last = len(episode.clauses) - 1
    teacher.saw(np.array([0]), np.array([0]), before_goal(episode, away=True)[None])
    assert abs(side(teacher, last, LEFT)) == 1
    assert side(teacher, last, FORWARD) == 0, "driving on is not a guess at a side"
    teacher.saw(np.array([0]), np.array([1]), before_goal(episode, away=False)[None])
    assert side(teacher, last, LEFT, frames=2) == 0
    teacher.saw(np.array([0]), np.array([2]), before_goal(episode, away=True)[None])
    assert side(teacher, last, STOP, frames=3) == 0, "an earlier frame of the decision shows it"


def test_a_stop_needs_the_goal_in_a_frame(teacher, episode):
    teacher.saw(np.array([0]), np.array([0]), before_goal(episode, away=True)[None])
    assert side(teacher, len(episode.clauses) - 1, STOP) != 0


def test_it_keeps_to_its_side_and_gives_up_after_a_turn_around(teacher, episode):
    teacher.saw(np.array([0]), np.array([0]), before_goal(episode, away=True)[None])
    sides = [side(teacher, len(episode.clauses) - 1, LEFT) for _ in range(MAX_SEARCHES + 1)]
    assert len(set(sides[:-1])) == 1 and sides[0] != 0 and sides[-1] == 0


def test_a_step_aside_is_no_reason_to_turn_around_again(teacher, episode):
    """A teacher that began anew after every step taught the model to go round in circles."""
    last, pose = len(episode.clauses) - 1, before_goal(episode, away=True)
    teacher.saw(np.array([0]), np.array([0]), pose[None])
    for _ in range(MAX_SEARCHES):
        assert side(teacher, last, LEFT) != 0
    ahead = np.array([math.cos(pose[2]), math.sin(pose[2]), 0.0])
    room = episode.scene.room_at(*map(float, pose[:2]))
    for number, gone_m in enumerate((0.25, 1.0), start=1):
        there = pose + gone_m * ahead
        assert episode.scene.room_at(*map(float, there[:2])) == room
        teacher.saw(np.array([0]), np.array([number]), there[None])
        assert side(teacher, last, LEFT, frames=number + 1) == 0
    teacher._spot(0, teacher._next_thing(0, last), pose + (LOOKED_M + 0.1) * ahead)
    assert teacher._spots[0, teacher._next_thing(0, last)].num_searches == 0


def test_a_turn_of_the_instruction_is_known(teacher, episode):
    turn = replace(episode.clauses[-1], kind="turn", landmark=None)
    teacher.start([replace(episode, clauses=(turn, episode.clauses[-1]))], 8)
    teacher.saw(np.array([0]), np.array([0]), before_goal(episode, away=True)[None])
    assert side(teacher, 0, LEFT) == 0 and side(teacher, 1, LEFT) != 0


def test_what_is_looked_for_is_labelled_where_the_frame_shows_it(teacher, episode):
    last, robots = np.array([len(episode.clauses) - 1]), np.array([0])
    pose = before_goal(episode, away=False) + np.array([0.0, 0.0, -0.3])
    teacher.saw(robots, np.array([0]), pose[None])
    in_view, sine, cosine = teacher.sightings(robots, last, np.array([0]))[0]
    assert in_view == 1.0 and math.atan2(sine, cosine) == pytest.approx(0.3, abs=1e-4)
    teacher.saw(robots, np.array([1]), before_goal(episode, away=True)[None])
    assert teacher.sightings(robots, last, np.array([1])).tolist() == [[0.0, 0.0, 0.0]]


def test_costs_prefer_the_widest_turn_to_the_side():
    costs = search_costs(np.array([1.0, -1.0]))
    assert costs.shape == (2, len(MOTIONS)) and np.isfinite(costs).all()
    assert TURN_RAD[costs.argmin(1)] == pytest.approx([math.pi / 4, -math.pi / 4])
    assert (costs[0, TURN_RAD <= 0] > costs[0, TURN_RAD > 0].max()).all()


def test_it_turns_on_to_the_side_to_which_it_turned_or_was_told_to(teacher, episode):
    """Not back: the restraint would forbid it, and the model learns to dance."""
    goal, pose = episode.clauses[-1], before_goal(episode, away=True)
    for sign, word in ((1, "left"), (-1, "right")):
        teacher.start([episode], 8)
        turned = np.stack([pose - np.array([0.0, 0.0, sign * math.radians(45)]), pose])
        teacher.saw(np.array([0, 0]), np.array([0, 1]), turned)
        assert side(teacher, len(episode.clauses) - 1, STOP, frames=2) == sign
        told = replace(goal, kind="turn", landmark=None, text=f"turn {word}, and")
        teacher.start([replace(episode, clauses=(told, goal))], 8)
        teacher.saw(np.array([0]), np.array([0]), pose[None])
        assert side(teacher, 1, STOP) == sign


def test_what_was_found_on_a_spot_stays_found_there(teacher, episode):
    """Though the frame that shows it falls out of the sampled ones."""
    last, away = len(episode.clauses) - 1, before_goal(episode, away=True)
    teacher.saw(np.array([0]), np.array([0]), away[None])
    assert side(teacher, last, STOP) != 0
    teacher.saw(np.array([0]), np.array([1]), before_goal(episode, away=False)[None])
    assert side(teacher, last, LEFT, frames=2) == 0
    teacher.saw(np.array([0]), np.array([2]), away[None])
    blind = np.array([[-1] * 7 + [2]])
    assert teacher.sides(np.array([0]), np.array([last]), blind, np.array([STOP]))[0] == 0


def driven(seed, settings, frames):
    """The motions by which each robot follows the teacher, and whether all arrive."""
    fleet = Fleet(seed, settings, frames, build_sequences())
    assert isinstance(fleet.planner, Planner)
    turns_rad = [[] for _ in fleet.episodes]
    while fleet.active.any():
        labels = fleet.labels()
        for robot, costs in zip(labels.robots, labels.costs, strict=True):
            turns_rad[robot].append(TURN_RAD[costs.argmin()])
        fleet.advance(labels, None)
    fleet.close()
    return turns_rad, fleet.success.all()


def test_who_follows_it_arrives():
    settings = FleetSettings(
        num_robots=4, num_rounds=1, view_share=0.0, noise_levels=(0.0,), searches=True
    )
    frames = np.zeros((4, settings.max_frames, 192, 192, 3), np.uint8)
    assert driven(880_201, settings, frames)[1]


def test_who_follows_it_does_not_turn_left_and_right_in_turn(monkeypatch):
    def store(fleet, robots, slots, poses):
        """Nothing is rendered: the teacher knows by the scene what a frame would show."""
        if len(robots):
            fleet.teacher.saw(robots, slots, poses)

    monkeypatch.setattr(Fleet, "_store", store)
    settings = FleetSettings(
        num_robots=16, num_rounds=1, view_share=0.0, noise_levels=(0.0,), searches=True
    )
    turns_rad, has_arrived = driven(881_022, settings, None)
    assert has_arrived
    for each in turns_rad:
        assert all(one * other >= 0.0 for one, other in itertools.pairwise(each))

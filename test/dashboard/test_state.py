# SPDX-License-Identifier: Apache-2.0
"""What the dashboard remembers of what it heard."""

import math
import threading

import pytest

from nvila_ros.dashboard.state import MAX_TRAIL_POINTS, DashboardState, Health


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def state(clock):
    return DashboardState(clock)


def row(phase, episode=0, result=None, message=""):
    return {"state": phase, "episode": episode, "result": result, "code": 0, "message": message}


def test_an_instruction_gets_its_episode_and_its_result(state, clock):
    state.hear_status(row("idle"))
    clock.now_s += 5
    state.hear_instruction("Go.")
    assert state.instructions()[0].episode == 0
    state.hear_status(row("waiting", 1))
    assert state.instructions()[0].episode == 1 and not state.instructions()[0].result
    state.hear_status(row("idle", 1, "SUCCEEDED", "there"))
    told = state.instructions()[0]
    assert (told.result, told.message) == ("SUCCEEDED", "there")


def test_a_state_that_overtakes_the_instruction_is_still_its_own(state, clock):
    state.hear_status(row("idle"))
    clock.now_s += 5
    state.hear_status(row("waiting", 1))
    state.hear_instruction("Go.")
    assert state.instructions()[0].episode == 1


def test_the_result_of_an_episode_before_our_time_is_nobodys(state, clock):
    state.hear_status(row("idle", 7, "SUCCEEDED"))
    clock.now_s += 5
    state.hear_instruction("Go.")
    state.hear_status(row("idle", 7, "SUCCEEDED"))
    assert state.instructions()[0].result == ""


def test_a_new_instruction_ends_the_one_before(state, clock):
    for number, text in ((1, "Go left."), (2, "Go right.")):
        clock.now_s += 5
        state.hear_instruction(text)
        state.hear_status(row("waiting", number))
    newest, before = state.instructions()
    assert (newest.text, newest.episode, newest.result) == ("Go right.", 2, "")
    assert before.result == "REPLACED"


def test_an_instruction_that_was_refused_is_not_called_replaced(state, clock):
    state.hear_instruction("Go left.")
    clock.now_s += 5
    state.hear_instruction("Go right.")
    assert state.instructions()[1].result == "NOT TAKEN"


def test_only_what_changed_has_another_version(state):
    before = {part: state.version(part) for part in ("state", "decision", "health", "trail")}
    state.hear_decision({"sentence": "stop."})
    changed = {part for part, version in before.items() if state.version(part) != version}
    assert changed == {"decision"}
    state.hear_health("camera", Health(0, "10 Hz"))
    version = state.version("health")
    state.hear_health("camera", Health(0, "10 Hz"))
    assert state.version("health") == version


def test_a_robot_that_stands_makes_no_news(state):
    state.hear_pose((1.0, 2.0, 0.5), (0.0, 0.0))
    versions = [state.version(part) for part in ("trail", "motion")]
    for _ in range(100):
        state.hear_pose((1.0, 2.0, 0.5), (0.0001, 0.0))
    assert [state.version(part) for part in ("trail", "motion")] == versions


def test_a_long_drive_keeps_a_trail_of_bounded_length_from_its_start(state):
    for step in range(20_000):
        state.hear_pose((step * 0.06, 0.0, 0.0), (0.5, 0.0))
    trail = state.trail()
    assert len(trail) <= MAX_TRAIL_POINTS
    assert trail[0] == (0.0, 0.0) and trail[-1][0] > 1190.0


def test_a_robot_that_was_carried_away_begins_a_new_trail(state):
    for step in range(10):
        state.hear_pose((step * 0.1, 0.0, 0.0), (0.5, 0.0))
    state.hear_pose((5.0, 5.0, 0.0), (0.0, 0.0))
    assert state.trail() == [(5.0, 5.0)] and state.pose == (5.0, 5.0, 0.0)


@pytest.mark.parametrize("pose", [(math.nan, 0.0, 0.0), (0.0, math.inf, 0.0), (1e30, 0.0, 0.0)])
def test_odometry_that_is_no_place_is_left_out(state, pose):
    state.hear_pose(pose, (0.0, 0.0))
    assert state.pose is None and not state.trail()


def test_it_knows_when_the_navigator_fell_silent(state, clock):
    assert state.silent
    state.hear_health("state", Health(0, "idle"))
    assert not state.silent
    clock.now_s += 3.5
    assert state.silent


def test_pictures_are_wanted_while_somebody_looks(state):
    state.watch("one", True)
    state.watch("two", True)
    state.watch("one", False)
    assert state.num_watchers == 1
    state.watch("two", False)
    state.watch("two", False)
    assert state.num_watchers == 0


def test_a_picture_of_an_unknown_name_is_refused(state):
    with pytest.raises(KeyError):
        state.picture("../etc/passwd")


def test_reading_while_others_write_never_fails(state):
    ended = threading.Event()

    def write():
        number = 0
        while not ended.is_set():
            number += 1
            state.hear_decision({"index": number})
            state.hear_instruction(str(number))
            state.hear_pose((number * 0.06 % 50, 0.0, 0.0), (0.1, 0.0))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2000):
            state.decisions(), state.instructions(), state.trail()
    finally:
        ended.set()
        writer.join()

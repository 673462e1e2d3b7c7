# SPDX-License-Identifier: Apache-2.0
"""An episode that leads nowhere ends: lost, unsure, unreadable, blocked, too long."""

import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.decision import Decision
from nvila_ros.episode_watch import OSCILLATIONS, EpisodeWatch
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import Result

FORWARD, LEFT, RIGHT = ACTIONS[1], ACTIONS[4], ACTIONS[7]


def decision(action, confidence=0.9):
    return Decision(
        action=action,
        confidence=confidence,
        probabilities=(0.1,) * 10,
        latency_s=0.1,
        num_encoded_frames=1,
        frame_indices=(0,),
        stamp_s=0.0,
    )


@pytest.fixture
def watch():
    return EpisodeWatch(NavigatorConfig(lost_after_decisions=8, lost_radius_m=0.5))


def ends(watch, actions, poses):
    for number, (action, pose) in enumerate(zip(actions, poses, strict=True), 1):
        end = watch.decided(decision(action), number, pose)
        if end is not None:
            return number, end[0]
    return None


def test_left_and_right_in_turn_is_lost(watch):
    actions = [LEFT, RIGHT] * 10
    poses = [(float(step), 0.0, 0.0) for step in range(20)]
    assert ends(watch, actions, poses) == (OSCILLATIONS, Result.LOST)


def test_a_motion_between_turns_is_progress(watch):
    actions = [LEFT, FORWARD, RIGHT, FORWARD] * 5
    poses = [(0.25 * step, 0.0, 0.0) for step in range(20)]
    assert ends(watch, actions, poses) is None


def test_going_nowhere_is_lost(watch):
    assert ends(watch, [LEFT] * 20, [(0.0, 0.0, 0.0)] * 20) == (9, Result.LOST)


def test_a_new_episode_forgets(watch):
    ends(watch, [LEFT] * 8, [(0.0, 0.0, 0.0)] * 8)
    watch.begin()
    assert ends(watch, [LEFT] * 8, [(0.0, 0.0, 0.0)] * 8) is None


def test_too_many_decisions():
    watch = EpisodeWatch(NavigatorConfig(max_decisions=2))
    assert ends(watch, [FORWARD] * 3, [(0.0, 0.0, 0.0)] * 3) == (2, Result.TIMEOUT)


def test_unsure_decisions_in_a_row_end_it(watch):
    limit = watch.config.max_unsure_decisions
    for _ in range(limit - 1):
        assert watch.unsure(decision(FORWARD, 0.1)) and watch.unsure_end() is None
    assert not watch.unsure(decision(FORWARD, 0.5))  # one that is sure begins anew
    for _ in range(limit):
        assert watch.unsure(decision(FORWARD, 0.1))
    assert watch.unsure_end()[0] is Result.LOW_CONFIDENCE
    assert watch.num_unsure == 2 * limit - 1


def test_unusable_answers_in_a_row_end_it(watch):
    assert watch.refused("what?") is None and watch.refused("what?") is None
    result, message = watch.refused("what?")
    assert result is Result.MODEL_ERROR and "3 answers" in message and watch.num_refusals == 3


def test_failed_motions_in_a_row_end_it(watch):
    for _ in range(4):
        assert watch.motion_failed("obstacle") is None
    watch.motion_done()
    ended = [watch.motion_failed("obstacle") for _ in range(5)]
    assert not any(ended[:4]) and ended[4][0] is Result.OBSTACLE

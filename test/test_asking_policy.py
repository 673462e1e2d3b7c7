# SPDX-License-Identifier: Apache-2.0
"""Before it stops the policy asks where the goal is; where that is unseen, it looks around."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from nvila_ros import asking_policy
from nvila_ros.actions import ACTIONS, STOP
from nvila_ros.asking_policy import (
    FAR_ANSWERS,
    MAX_REFUSALS,
    NEAR_ANSWERS,
    AskingPolicy,
    goal_name,
)
from nvila_ros.decision import Decision
from nvila_ros.errors import ImageError
from nvila_ros.models.nvila import Nvila
from nvila_ros.policy import NavigationPolicy
from nvila_ros.sim.instructions import CONNECTORS, FAR_GOAL_TEXTS, GOAL_TEXTS
from nvila_ros.sim.scene import CATEGORIES
from nvila_ros.training import questions
from nvila_ros.training.vocabulary import build_sequences

LEFT_45, LEFT_15, RIGHT_45, FORWARD_50 = 6, 4, 9, 2


class Scripted:
    """A policy that wants to stop, with the given chances otherwise, and doubts as it is told."""

    def __init__(self, doubt: float, **chances: float) -> None:
        self.doubt, self.pose, self.questions = doubt, (0.0, 0.0, 0.0), []
        self.chances = [0.0] * len(ACTIONS)
        for name, chance in chances.items():
            self.chances[int(name.removeprefix("action_"))] = chance
        self.chances[STOP.index] = 1.0 - sum(self.chances)

    def answers(self, sentences):
        return tuple(sentences)

    def reset(self, instruction):
        pass

    def ask(self, question, answers):
        self.questions.append(question)
        split = len(NEAR_ANSWERS)
        near, other = (1.0 - self.doubt) / split, self.doubt / (len(answers) - split)
        return SimpleNamespace(probabilities=[near] * split + [other] * (len(answers) - split))

    def decide(self):
        return Decision(
            action=STOP,
            confidence=self.chances[STOP.index],
            probabilities=tuple(self.chances),
            latency_s=0.0,
            num_encoded_frames=0,
            frame_indices=(),
            stamp_s=0.0,
            pose=self.pose,
        )

    def tried(self, decision):
        pass


def _asking(doubt, instruction="Turn left, then wait by the red chair.", **chances):
    inner = Scripted(doubt, **chances)
    policy = AskingPolicy(inner)
    policy.reset(instruction)
    return policy, inner


def _step(policy):
    decision = policy.decide()
    policy.tried(decision)
    return decision.index


@pytest.mark.parametrize("text", GOAL_TEXTS + FAR_GOAL_TEXTS)
@pytest.mark.parametrize("connector", CONNECTORS)
def test_the_goal_is_what_an_instruction_names_last(text, connector):
    for category in CATEGORIES:
        last = text.format(thing=f"pink {category}")
        told = f"Pass the green bed on your left, then take the red door into the office{connector}"
        assert goal_name(f"{told}{last}.") == f"pink {category}"


def test_an_instruction_without_a_goal_is_not_asked_about():
    assert goal_name("Turn left and stop.") is None
    policy, inner = _asking(1.0, "Turn left and stop.", action_6=0.3)
    assert policy.decide().action == STOP
    assert not inner.questions


def test_its_answers_are_those_that_were_taught():
    taught = {
        f"It is {questions.side_words(sign * math.radians(degrees))}, {words}."
        for degrees in (0, 15, 30, 45)
        for sign in (1, -1)
        for _, words in questions.DISTANCE_WORDS
    }
    assert {*NEAR_ANSWERS, *FAR_ANSWERS} == taught
    assert asking_policy.NOT_VISIBLE == questions.NOT_VISIBLE


def test_a_goal_that_is_seen_near_is_stopped_at():
    policy, inner = _asking(0.1, action_6=0.4)
    assert policy.decide().action == STOP
    assert inner.questions == ["Where is the red chair?"]


def test_an_unseen_goal_is_looked_for_all_round_to_one_side_and_then_elsewhere():
    policy, inner = _asking(0.9, action_4=0.2, action_9=0.1, action_2=0.05)
    assert [_step(policy) for _ in range(8)] == [LEFT_45] * 8  # the likelier side, in large turns
    assert _step(policy) == FORWARD_50
    inner.pose = (0.6, 0.0, 0.0)  # another spot: it looks around again
    assert _step(policy) == LEFT_45


def test_a_side_that_is_barred_gives_way_to_the_other():
    policy, inner = _asking(0.9, action_4=0.2, action_9=0.1)
    assert _step(policy) == LEFT_45
    inner.chances[4] = 0.0
    assert _step(policy) == RIGHT_45


def test_where_turns_are_barred_it_moves_on_and_where_all_is_it_stops():
    policy, inner = _asking(0.9, action_2=0.1)
    decision = policy.decide()
    assert decision.index == FORWARD_50
    assert decision.confidence == decision.probabilities[FORWARD_50] == pytest.approx(1.0)
    inner.chances[2] = 0.0
    assert policy.decide().action == STOP


def test_it_believes_a_stop_after_many_refusals_and_forgets_them_in_the_next_episode():
    policy, _ = _asking(0.9, action_6=0.3, action_2=0.1)
    assert all(_step(policy) != STOP.index for _ in range(MAX_REFUSALS))
    assert _step(policy) == STOP.index
    policy.reset("Go to the red chair and stop.")
    assert _step(policy) == LEFT_45


def test_it_asks_a_real_network_about_the_newest_picture():
    sequences = build_sequences()
    model = Nvila.from_scratch(sequences.config, std=0.08).eval()
    model.connect(sequences.tokenizer.media_ids, sequences.tokenizer.newline_ids)
    inner = NavigationPolicy(model, sequences.tokenizer)
    policy = AskingPolicy(inner)
    policy.reset("Go to the red chair and stop.")
    with pytest.raises(ImageError):
        policy.doubt()
    doubts = []
    for step in range(2):
        picture = np.full((192, 192, 3), 200 * step, np.uint8)
        policy.observe(picture, 0.3 * step, 0.0, 0.0, float(step))
        policy.decide()
        doubts.append(policy.doubt())
    assert all(0.0 < doubt < 1.0 for doubt in doubts)
    assert doubts[0] != doubts[1]
    decision = inner.decide()
    again = dataclasses.replace(inner.decide(), latency_s=decision.latency_s)
    assert again == decision  # questions leave no trace in what is decided

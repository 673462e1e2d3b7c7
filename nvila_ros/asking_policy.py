# SPDX-License-Identifier: Apache-2.0
"""A policy that asks before it stops: where is the goal? No stop at what the model does not see.

The small model answers questions about one picture (models/nano/README.md, "What it can be asked"),
and what it says about the goal tells right stops from wrong ones better than the probability of
STOP does. So when STOP is chosen, the goal's name is taken from the instruction and the model is
asked where that is. Where it says that it is not visible, or far off, the robot looks around on the
spot, to the side that it would rather turn to, until it answers otherwise; after a full turn it
moves on as the model likes best. Only for models that were taught these questions.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time

import numpy as np

from nvila_ros.actions import ACTIONS, STOP
from nvila_ros.decision import Decision
from nvila_ros.policy import NavigationPolicy
from nvila_ros.restraint import FORWARD, FULL_TURN_RAD, LEFT, RIGHT

# Words of training/questions.py, which the core does not import.
SIDE_WORDS = (
    *(f"{degrees} degrees {side}" for side in ("left", "right") for degrees in (15, 30, 45)),
    "ahead",
)
NEAR_WORDS = ("half a meter", "one meter", "one and a half meters", "two meters")
FAR_WORDS = ("three meters", "four meters", "six meters", "eight meters")
NOT_VISIBLE = "It is not visible."
NEAR_ANSWERS = tuple(f"It is {side}, {words}." for side in SIDE_WORDS for words in NEAR_WORDS)
FAR_ANSWERS = tuple(f"It is {side}, {words}." for side in SIDE_WORDS for words in FAR_WORDS)

# Chosen on 880000:880120.
MAX_DOUBT = 0.3  # probability that the goal is not visible or far, up to which STOP is taken
MAX_REFUSALS = 24  # of STOP in one episode: after that it is believed
SPOT_M = 0.5  # nearer than this to where a look around began is the same spot

_TURNS = {"left": LEFT, "right": RIGHT}


def goal_name(instruction: str) -> str | None:
    """The thing that an instruction names last ("the red chair" -> "red chair"), None for none."""
    _, *named = re.split(r"\bthe ", instruction.lower())
    return re.split(r" and |[^a-z ]", named[-1])[0].strip() or None if named else None


class AskingPolicy:
    """Used like the `NavigationPolicy` that it holds."""

    def __init__(
        self,
        policy: NavigationPolicy,
        max_doubt: float = MAX_DOUBT,
        max_refusals: int = MAX_REFUSALS,
    ) -> None:
        self._policy, self._max_doubt, self._max_refusals = policy, max_doubt, max_refusals
        self._answers = policy.answers((*NEAR_ANSWERS, *FAR_ANSWERS, NOT_VISIBLE))
        self._begin(None)

    @property
    def num_samples(self) -> int:
        """Frames kept in this episode."""
        return self._policy.num_samples

    def reset(self, instruction: str) -> None:
        """Begins an episode: checks the instruction, forgets all frames."""
        self._policy.reset(instruction)
        self._begin(goal_name(instruction))

    def observe(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool:
        """Takes a (H, W, 3) uint8 image and its pose; True when it became a sample."""
        return self._policy.observe(rgb, x_m, y_m, yaw_rad, stamp_s)

    def decide(self) -> Decision:
        """The model's choice, or another motion in place of a STOP that it doubts itself."""
        begin_s = time.perf_counter()
        decision = self._policy.decide()
        if decision.action != STOP or self._goal is None or self._refusals >= self._max_refusals:
            return decision
        if self.doubt() > self._max_doubt:
            decision = self._instead(decision)
            self._refusals += decision.action != STOP
        return dataclasses.replace(decision, latency_s=time.perf_counter() - begin_s)

    def doubt(self) -> float:
        """The model's probability that the goal is not visible, or far, in the newest picture."""
        choice = self._policy.ask(f"Where is the {self._goal}?", self._answers)
        return 1.0 - sum(choice.probabilities[: len(NEAR_ANSWERS)])

    def tried(self, decision: Decision) -> None:
        """Notes that the last decision's motion was carried out, or tried until it failed."""
        self._policy.tried(decision)
        self._turned_rad += abs(decision.action.turn_rad)

    def strip(self) -> bytes | None:
        """JPEG of the frames exactly as the last decision saw them, with the model's own answer."""
        return self._policy.strip()

    def prepare(self) -> int:
        """Encodes sampled frames that no decision has shown yet; returns how many."""
        return self._policy.prepare()

    def _begin(self, goal: str | None) -> None:
        self._goal, self._refusals = goal, 0
        self._spot: tuple[float, float] | None = None  # of the look around
        self._side, self._turned_rad = "", 0.0  # to which it turns, and how much it has

    def _instead(self, decision: Decision) -> Decision:
        """A motion in place of STOP; STOP where nothing else is offered."""
        offered = {
            index: probability
            for index, probability in enumerate(decision.probabilities)
            if index != STOP.index and probability > 0.0
        }
        assert decision.pose is not None
        here = decision.pose[:2]
        if self._spot is None or math.dist(here, self._spot) > SPOT_M:
            self._spot, self._side, self._turned_rad = here, "", 0.0
        turn = self._turn(decision.probabilities) if self._turned_rad < FULL_TURN_RAD else None
        if turn is not None:
            offered = {turn: 1.0}
        elif FORWARD & offered.keys():
            offered = {index: offered[index] for index in FORWARD & offered.keys()}
        if not offered:
            return decision
        total = sum(offered.values())
        chances = tuple(offered.get(index, 0.0) / total for index in range(len(ACTIONS)))
        index = max(offered, key=chances.__getitem__)
        return dataclasses.replace(
            decision, action=ACTIONS[index], confidence=chances[index], probabilities=chances
        )

    def _turn(self, probabilities: tuple[float, ...]) -> int | None:
        """The largest turn to the side of this look around, None where turns are barred."""
        chances = {
            side: sum(probabilities[index] for index in turns) for side, turns in _TURNS.items()
        }
        if not any(chances.values()):
            return None
        if not chances.get(self._side):
            self._side = max(chances, key=chances.__getitem__)
        return max(_TURNS[self._side], key=lambda index: abs(ACTIONS[index].turn_rad))

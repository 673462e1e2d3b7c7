# SPDX-License-Identifier: Apache-2.0
"""Trajectories as lists of unit actions to decisions: what the robot was to say at each turn.

Units are those of VLN-CE and StreamVLN: 0 stop, 1 forward 25 cm, 2 left, 3 right. Up to three equal
units become one decision (75 cm, 45 degrees), as NaVILA's rows have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvila_ros.actions import ACTIONS, TURN_STEPS_DEG
from nvila_ros.errors import DataError

STOP, FORWARD, LEFT, RIGHT = range(4)
MAX_UNITS = 3
_FIRST_INDEX = {FORWARD: 1, LEFT: 4, RIGHT: 7}  # of ACTIONS, by unit


@dataclass(frozen=True)
class Decision:
    """At the frame `place` (0 is the first one seen) the robot decides for `ACTIONS[index]`."""

    place: int
    index: int

    @property
    def sentence(self) -> str:
        """What the model is to answer."""
        return ACTIONS[self.index].sentence


def decisions(
    actions: Sequence[int], *, turn_deg: int = TURN_STEPS_DEG[0], every_step: bool = False
) -> list[Decision]:
    """Unit actions, `actions[t]` taken after seeing frame t -> the decisions, the stop last.

    `turn_deg` is what one turn unit is: 15, or 30 as in RxR. With `every_step` there is a decision
    at each frame, for the rest of the run that it is in; else one at the start of each merged run.
    """
    if not actions:
        raise DataError("the trajectory has no actions")
    wrong = next((a for a in actions if a not in (STOP, FORWARD, LEFT, RIGHT)), None)
    if wrong is not None:
        raise DataError(f"the trajectory holds the action {wrong!r}; 0, 1, 2 or 3 is expected")
    if STOP in actions[:-1]:
        raise DataError("the trajectory stops before its end")
    if turn_deg not in TURN_STEPS_DEG:
        raise DataError(f"a turn of {turn_deg} degrees is none of {TURN_STEPS_DEG}")
    found: list[Decision] = []
    place = 0
    while place < len(actions):
        unit = actions[place]
        if unit == STOP:
            found.append(Decision(place, 0))
            break
        size = 1 if unit == FORWARD else turn_deg // TURN_STEPS_DEG[0]
        count = 1
        while (
            (count + 1) * size <= MAX_UNITS
            and place + count < len(actions)
            and actions[place + count] == unit
        ):
            count += 1
        found.append(Decision(place, _FIRST_INDEX[unit] + count * size - 1))
        place += 1 if every_step else count
    return found


def streamvln_actions(actions: Sequence[int]) -> list[int]:
    """StreamVLN's list (a dummy -1 first, the final 0 left out) -> one action per frame."""
    if not actions or actions[0] != -1:
        raise DataError(
            f"StreamVLN's actions begin with -1, got {list(actions[:3])}; check the format"
        )
    rest = list(actions[1:])
    return rest if rest and rest[-1] == STOP else [*rest, STOP]

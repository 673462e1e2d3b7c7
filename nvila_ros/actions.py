# SPDX-License-Identifier: Apache-2.0
"""The ten actions: from the words that the model speaks to the metres and radians of the robot."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from nvila_ros.errors import ActionParseError

Kind = Literal["stop", "forward", "left", "right"]

FORWARD_STEPS_CM = (25, 50, 75)
TURN_STEPS_DEG = (15, 30, 45)
SENTENCE_OPENING = "The next action is"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One entry of the vocabulary; `index` is its place in ACTIONS and the simulator's MOTIONS."""

    index: int
    kind: Kind
    forward_m: float
    turn_rad: float  # positive is left (counter-clockwise)
    sentence: str


def _vocabulary() -> tuple[Action, ...]:
    rows: list[tuple[Kind, float, float, str]] = [("stop", 0.0, 0.0, "stop.")]
    rows += [("forward", step / 100, 0.0, f"move forward {step} cm.") for step in FORWARD_STEPS_CM]
    sides: tuple[tuple[Kind, int], ...] = (("left", 1), ("right", -1))
    for kind, sign in sides:
        rows += [
            (kind, 0.0, sign * math.radians(step), f"turn {kind} {step} degrees.")
            for step in TURN_STEPS_DEG
        ]
    return tuple(
        Action(
            index=index,
            kind=kind,
            forward_m=forward_m,
            turn_rad=turn_rad,
            sentence=f"{SENTENCE_OPENING} {words}",
        )
        for index, (kind, forward_m, turn_rad, words) in enumerate(rows)
    )


ACTIONS: tuple[Action, ...] = _vocabulary()
STOP = ACTIONS[0]

# What a sentence is made of where it should be few tokens: the opening, then one ending per action.
ANSWER_PHRASES = (
    SENTENCE_OPENING,
    *(action.sentence.removeprefix(SENTENCE_OPENING) for action in ACTIONS),
)


_MOTION = re.compile(
    r"\bis (?:to )?(?P<kind>move forward|turn left|turn right)\b"
    r"(?:\s+(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>[a-z°]+)?)?",
    re.IGNORECASE,
)
_STOP = re.compile(r"\bstop\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|never|cannot|no)\b|n['’]t\b", re.IGNORECASE)
_FORWARD_UNITS = frozenset({"cm", "centimeter", "centimeters", "centimetre", "centimetres"})
_TURN_UNITS = frozenset({"deg", "degree", "degrees", "°"})


def parse_action(text: str) -> Action:
    """Free text from a model asked without the grammar -> the nearest action of the vocabulary.

    Amounts are clamped to the vocabulary. Text that names no action, several, or a motion without a
    usable amount raises ActionParseError: the robot holds still, nothing is guessed.
    """
    motions = list(_MOTION.finditer(text))
    kinds = {match["kind"].lower() for match in motions}
    if _STOP.search(text):
        kinds.add("stop")
    if len(kinds) != 1 or _NEGATION.search(text):
        raise ActionParseError(
            f"got {text!r}; expected one action, for instance {ACTIONS[3].sentence!r}"
        )
    if kinds == {"stop"}:
        return STOP
    kind = kinds.pop().split()[1]
    steps, units = (
        (FORWARD_STEPS_CM, _FORWARD_UNITS) if kind == "forward" else (TURN_STEPS_DEG, _TURN_UNITS)
    )
    amount, unit = motions[0]["amount"], (motions[0]["unit"] or "").lower()
    if amount is None or unit not in units or float(amount) <= 0:
        raise ActionParseError(f"got {text!r}; expected an amount after {kind!r} in {min(units)}")
    step = min(steps, key=lambda option: abs(option - min(float(amount), steps[-1])))
    candidates = (action for action in ACTIONS if action.kind == kind)
    return next(action for action, option in zip(candidates, steps, strict=True) if option == step)

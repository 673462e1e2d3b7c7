# SPDX-License-Identifier: Apache-2.0
"""A route becomes sentences that a robot which looks can follow: doors, turns, things, goal."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np

from nvila_ros.sim.route import NEAR_BEND_M, Bend, Crossing, Passing, Route
from nvila_ros.sim.scene import CATEGORIES, COLOURS, ROOM_KINDS, Door, Furniture, Scene

FIRST_TURN_RAD = math.radians(35)
TURN_AROUND_RAD = math.radians(135)
SEEN_SHARE = 0.004  # of the picture's pixels: enough to be told apart
LANDMARK_SHARE = 0.01  # of the picture: a thing that a turn or a passing may be tied to
GOAL_SHARE = 0.015  # of the picture, in the last metre: the goal is where the robot looks
MAX_CLAUSES = 7
MIN_LEG_M = 2.5  # a shorter stretch needs no landmark on the way
PASS_PROBABILITY = 0.6

TURN_TEXTS = ("turn {side}", "make a {side} turn")
TURN_AROUND_TEXTS = ("turn around", "turn back")
TURN_AT_TEXTS = ("turn {side} at the {thing}", "at the {thing}, turn {side}")
DOOR_TEXTS = (
    "go through the {door} into the {room}",
    "walk through the {door} into the {room}",
    "enter the {room} through the {door}",
    "take the {door} into the {room}",
)
PASS_TEXTS = ("walk past the {thing} on your {side}", "pass the {thing} on your {side}")
GOAL_TEXTS = (
    "stop in front of the {thing}",
    "stop at the {thing}",
    "wait in front of the {thing}",
    "wait by the {thing}",
)
DOOR_NOUNS = {"leaf": "door", "frame": "doorway", "closed": "door"}
# After a turn, or as the whole instruction, the goal clause must say that there is a way to go.
FAR_GOAL_TEXTS = (
    "walk to the {thing} and stop in front of it",
    "go to the {thing} and stop",
    "walk to the {thing} and wait there",
)
CONNECTORS = {", then ": 0.35, " and ": 0.30, ". ": 0.20, ". Then ": 0.15}
MAX_SENTENCE_CLAUSES = 3


@dataclasses.dataclass(frozen=True)
class Clause:
    """One step of an instruction, and how far along the path it is done."""

    text: str
    kind: str  # 'turn', 'door', 'pass' or 'goal'
    arc_m: float
    landmark: str | None = None  # landmark key


@dataclasses.dataclass(frozen=True, eq=False)
class Sightings:
    """What a robot on the route sees, at the route's camera poses."""

    arc_m: np.ndarray  # (K,)
    shares: list[dict[str, float]]  # landmark key -> share of the picture

    def largest_share(self, key: str, start_m: float, end_m: float) -> float:
        """Largest share of a landmark between two arc lengths, 0 if it is not seen."""
        inside = np.flatnonzero((self.arc_m >= start_m) & (self.arc_m <= end_m))
        return max((self.shares[index].get(key, 0.0) for index in inside), default=0.0)


def describe(
    route: Route,
    start_yaw_rad: float,
    goal: Furniture,
    sightings: Sightings,
    rng: np.random.Generator,
) -> list[Clause] | None:
    """Clauses in the order of the route, or None where words would not be enough."""
    return _Describer(route, goal, sightings, rng).describe(start_yaw_rad)


def compose(clauses: list[Clause], rng: np.random.Generator) -> str:
    """Clauses -> sentences of one to three clauses; an 'and' is the last link of its sentence."""
    text, in_sentence, may_go_on = clauses[0].text, 1, True
    for previous, clause in itertools.pairwise(clauses):
        heavy = any(
            mark in part for part in (previous.text, clause.text) for mark in (",", " and ")
        )
        go_on = may_go_on and not heavy and in_sentence < MAX_SENTENCE_CLAUSES
        options = list(CONNECTORS) if go_on else [key for key in CONNECTORS if key[0] == "."]
        weights = np.array([CONNECTORS[key] for key in options])
        connector = options[int(rng.choice(len(options), p=weights / weights.sum()))]
        in_sentence = 1 if connector[0] == "." else in_sentence + 1
        may_go_on = connector != " and "
        text += connector + clause.text
    sentences = re.split(r"(?<=\. )", text + ".")
    return "".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def unique_furniture(scene: Scene) -> list[Furniture]:
    """Pieces that colour and category tell apart from all others in the apartment."""
    names = [(piece.colour, piece.category) for piece in scene.furniture]
    return [
        piece for piece, name in zip(scene.furniture, names, strict=True) if names.count(name) == 1
    ]


class _Describer:
    """Chooses what to say about one route."""

    def __init__(
        self, route: Route, goal: Furniture, sightings: Sightings, rng: np.random.Generator
    ) -> None:
        self._route, self._goal, self._sightings, self._rng = route, goal, sightings, rng
        self._crossings = route.crossings()
        self._things = [
            piece for piece in unique_furniture(route.scene) if piece.solid and piece != goal
        ]

    def describe(self, start_yaw_rad: float) -> list[Clause] | None:
        """All clauses, or None where a door or the goal is never seen on the way to it."""
        length_m = self._route.length_m
        if not self._is_seen(self._goal.key, length_m - 1.1, length_m, GOAL_SHARE):
            return None
        starts = self._leg_starts()
        for crossing, start_m in zip(self._crossings, starts, strict=False):
            if not self._is_seen(crossing.door.key, start_m, crossing.arc_m - 0.1):
                return None
        clauses = self._first_turn(start_yaw_rad)
        clauses += [self._door(crossing) for crossing in self._crossings]
        bends = [bend for bend in self._route.bends(self._crossings) if self._is_needed(bend)]
        turns = _without_repeats([self._turn(bend) for bend in bends])
        passes = self._passes(clauses + turns)
        if len(clauses) + len(turns) + 1 > MAX_CLAUSES:
            return None
        clauses += turns
        clauses += passes[: MAX_CLAUSES - 1 - len(clauses)]
        clauses.sort(key=lambda clause: clause.arc_m)
        on_the_way = bool(clauses) and clauses[-1].kind in ("door", "pass")
        texts = GOAL_TEXTS if on_the_way else FAR_GOAL_TEXTS
        text = self._pick(texts, thing=_thing(self._goal))
        return [*clauses, Clause(text, "goal", length_m, self._goal.key)]

    def _leg_starts(self) -> list[float]:
        return [0.0, *(crossing.arc_m for crossing in self._crossings)]

    def _is_seen(self, key: str, start_m: float, end_m: float, share: float = SEEN_SHARE) -> bool:
        return self._sightings.largest_share(key, start_m, end_m) >= share

    def _leg_start(self, arc_m: float) -> float:
        return max(start_m for start_m in self._leg_starts() if start_m <= arc_m)

    def _first_turn(self, start_yaw_rad: float) -> list[Clause]:
        angle_rad = float(self._route.direction_rad(0, 1.0)) - start_yaw_rad
        angle_rad = (angle_rad + math.pi) % (2 * math.pi) - math.pi
        if abs(angle_rad) <= FIRST_TURN_RAD:
            return []
        around = abs(angle_rad) > TURN_AROUND_RAD
        texts = TURN_AROUND_TEXTS if around else TURN_TEXTS
        return [Clause(self._pick(texts, side=_side(angle_rad > 0)), "turn", 0.15)]

    def _door(self, crossing: Crossing) -> Clause:
        room = next(room for room in self._route.scene.rooms if room.id == crossing.room_id)
        text = self._pick(DOOR_TEXTS, door=_door_name(crossing.door), room=room.kind)
        return Clause(text, "door", crossing.arc_m + 0.2, crossing.door.key)

    def _is_needed(self, bend: Bend) -> bool:
        """A bend goes without saying where the next door or the goal is in view before it."""
        coming = [crossing for crossing in self._crossings if crossing.arc_m > bend.arc_m]
        key = coming[0].door.key if coming else self._goal.key
        leg_start_m = self._leg_start(bend.arc_m)
        start_m = leg_start_m - 0.1 if bend.after_door else max(leg_start_m, bend.arc_m - 1.6)
        return not self._is_seen(key, start_m, bend.arc_m - (0.4 if bend.after_door else 0.1))

    def _turn(self, bend: Bend) -> Clause:
        side = _side(bend.angle_rad > 0)
        thing = None if bend.after_door else self._thing_at(bend)
        if thing is None:
            return Clause(self._pick(TURN_TEXTS, side=side), "turn", bend.arc_m + 0.4)
        text = self._pick(TURN_AT_TEXTS, side=side, thing=_thing(thing))
        return Clause(text, "turn", bend.arc_m + 0.4, thing.key)

    def _thing_at(self, bend: Bend) -> Furniture | None:
        """The nearest unique piece that is seen on the way to the bend."""
        point, start_m = self._route.at(bend.arc_m), self._leg_start(bend.arc_m)
        near = [
            (math.dist(point, (piece.x_m, piece.y_m)), piece.id, piece)
            for piece in self._things
            if self._is_seen(piece.key, start_m, bend.arc_m, LANDMARK_SHARE)
        ]
        distance_m, _, piece = min(near, default=(math.inf, 0, None))
        return piece if distance_m < NEAR_BEND_M else None

    def _passes(self, others: list[Clause]) -> list[Clause]:
        """At most one per leg, away from what is said already, of things seen before."""
        named = {clause.landmark for clause in others}
        starts = [*self._leg_starts(), self._route.length_m]
        clauses = []
        for start_m, end_m in itertools.pairwise(starts):
            if end_m - start_m < MIN_LEG_M or self._rng.random() > PASS_PROBABILITY:
                continue
            options = [
                passing
                for passing in self._route.passings(self._things)
                if start_m + 0.5 < passing.arc_m < end_m - 0.5
                and passing.furniture.key not in named
                and all(abs(passing.arc_m - clause.arc_m) > 0.8 for clause in others)
                and self._is_seen(
                    passing.furniture.key, start_m, passing.arc_m - 0.3, LANDMARK_SHARE
                )
            ]
            if options:
                clauses.append(self._pass(options[int(self._rng.integers(len(options)))]))
        return clauses

    def _pass(self, passing: Passing) -> Clause:
        thing, side = _thing(passing.furniture), _side(passing.left)
        text = self._pick(PASS_TEXTS, thing=thing, side=side)
        return Clause(text, "pass", passing.arc_m + 0.2, passing.furniture.key)

    def _pick(self, texts: tuple[str, ...], **words: str) -> str:
        return texts[int(self._rng.integers(len(texts)))].format(**words)


def _without_repeats(turns: list[Clause]) -> list[Clause]:
    """A long bend around one thing is said once, and is done where it ends."""
    kept: list[Clause] = []
    for turn in turns:
        if kept and turn.landmark is not None and turn.landmark == kept[-1].landmark:
            kept[-1] = dataclasses.replace(kept[-1], arc_m=turn.arc_m)
        else:
            kept.append(turn)
    return kept


def _side(left: bool) -> str:
    return "left" if left else "right"


def _thing(piece: Furniture) -> str:
    return f"{piece.colour} {piece.category}"


def _door_name(door: Door) -> str:
    return f"{door.colour} {DOOR_NOUNS[door.style]}"


def _vocabulary() -> frozenset[str]:
    templates = [
        *(TURN_TEXTS + TURN_AROUND_TEXTS + TURN_AT_TEXTS + DOOR_TEXTS + PASS_TEXTS),
        *(GOAL_TEXTS + FAR_GOAL_TEXTS + ROOM_KINDS + ("left", "right")),
        *CONNECTORS,
        *COLOURS,
        *CATEGORIES,
        *DOOR_NOUNS.values(),
    ]
    words = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(templates).lower()))
    return frozenset(words)


# Every word that an instruction can hold, in lower case.
VOCABULARY_WORDS = _vocabulary()

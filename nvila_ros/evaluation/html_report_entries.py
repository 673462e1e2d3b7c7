# SPDX-License-Identifier: Apache-2.0
"""What a report shows of one episode, whoever drove it: plan, paths, decisions, pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvila_ros.evaluation import report
from nvila_ros.evaluation.metrics import EpisodeMetrics
from nvila_ros.evaluation.rollout import Rollout
from nvila_ros.sim.geometry import door_leaf, obstacles
from nvila_ros.sim.scene import (
    COLOURS,
    DOOR_WIDTH_M,
    WALL_THICKNESS_M,
    Scene,
    rectangle_corners,
)

ROUNDED_TO_DIGITS = 2  # of metres: a pixel of the plan is more
MIN_PICTURES = 2  # first and last decision
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DecisionEntry:
    """One decision."""

    index: int  # of ACTIONS
    confidence: float | None  # probability of the choice; None where it was not kept
    probabilities: tuple[float, ...] = ()  # of all ten, or empty
    latency_s: float | None = None
    place: int | None = None  # row of the driven path
    picture: bytes | None = None  # what was seen, any format a browser shows


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry:
    """One episode; what is unknown is None or empty and not shown."""

    key: str  # unique in the run; runs are paired by it
    instruction: str
    metrics: EpisodeMetrics
    decisions: tuple[DecisionEntry, ...]
    driven: np.ndarray  # (N, 2+) metres
    reference: np.ndarray  # (R, 2) metres
    goal: tuple[float, float]
    kind: str | None = None  # of the instruction
    num_doors: int | None = None
    plan: Json | None = None


def entry_of_rollout(rollout: Rollout) -> EpisodeEntry:
    """A rollout of the simulator."""
    episode = rollout.episode
    count = len(rollout.actions)
    decisions = tuple(
        DecisionEntry(
            index=rollout.actions[number],
            confidence=rollout.confidences[number],
            probabilities=_at(rollout.probabilities, number) or (),
            latency_s=rollout.latencies_s[number],
            place=_at(rollout.places, number),
            picture=_at(rollout.frames, number),
        )
        for number in range(count)
    )
    kinds = [clause.kind for clause in episode.clauses]
    return EpisodeEntry(
        key=str(episode.seed),
        instruction=rollout.instruction,
        metrics=rollout.metrics,
        decisions=decisions,
        driven=rollout.poses,
        reference=np.asarray(episode.path),
        goal=episode.goal,
        kind=instruction_kind(kinds),
        num_doors=kinds.count("door"),
        plan=plan_of(episode.scene),
    )


def instruction_kind(clause_kinds: Sequence[str]) -> str:
    """Which steps the instruction names besides the goal, for instance 'door + turn'."""
    return " + ".join(sorted({*clause_kinds} - {"goal"})) or "goal only"


def plan_of(scene: Scene) -> Json:
    """The apartment as shapes in metres: rooms, walls, doors and furniture with their colours."""
    doors = []
    for door in scene.doors:
        half = np.abs(door.along) * DOOR_WIDTH_M / 2 + np.abs(door.across) * WALL_THICKNESS_M / 2
        doors.append([_corners(rectangle_corners(door.x_m, door.y_m, 0.0, *half)), door.colour])
        leaf = door_leaf(door)
        if leaf is not None:
            doors.append([_corners(leaf.corners()), door.colour])
    return {
        "size": [round(scene.width_m, 2), round(scene.height_m, 2)],
        "rooms": [[*_corners(room.centre[None]), room.kind] for room in scene.rooms],
        "walls": [_corners(item.corners()) for item in obstacles(scene) if item.kind == "wall"],
        "doors": doors,
        "pieces": [
            [_corners(piece.corners()), piece.colour, piece.category, int(piece.solid)]
            for piece in sorted(scene.furniture, key=lambda piece: piece.solid)
        ],
    }


def css_colours() -> dict[str, str]:
    """Name -> #rrggbb of doors and furniture."""
    return {
        name: "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
        for name, rgb in COLOURS.items()
    }


def payload(entry: EpisodeEntry, num_pictures: int, radius_m: float) -> Json:
    """What the page's script draws from; at most `num_pictures` different pictures, 0 for none."""
    pictures: dict[bytes, int] = {}
    shown = key_decisions(entry.decisions, num_pictures) if num_pictures else set()
    rows = []
    for number, decision in enumerate(entry.decisions):
        picture = None
        if decision.picture is not None and number in shown:
            picture = pictures.setdefault(decision.picture, len(pictures))
        rows.append(
            [
                decision.index,
                None if decision.confidence is None else round(decision.confidence, 3),
                [round(100 * share) for share in decision.probabilities],
                None if decision.latency_s is None else round(1e3 * decision.latency_s, 1),
                decision.place,
                picture,
            ]
        )
    return {
        "instruction": entry.instruction,
        "plan": entry.plan,
        "reference": _corners(entry.reference[:, :2]),
        "driven": np.round(entry.driven, ROUNDED_TO_DIGITS).tolist(),
        "goal": [round(float(value), ROUNDED_TO_DIGITS) for value in entry.goal[:2]],
        "radius": radius_m,
        "decisions": rows,
        "pictures": [base64.b64encode(picture).decode() for picture in pictures],
    }


def key_decisions(decisions: Sequence[DecisionEntry], count: int) -> set[int]:
    """Numbers of the decisions whose picture is shown, at most `count` but at least two.

    The first, the last, the least sure ones, and for the rest an even spread.
    """
    total = len(decisions)
    if total <= max(count, MIN_PICTURES):
        return set(range(total))
    chosen = {0, total - 1}
    sure = [1.0 if decision.confidence is None else decision.confidence for decision in decisions]
    by_doubt = sorted(range(total), key=sure.__getitem__)
    for number in by_doubt:
        if len(chosen) >= max(MIN_PICTURES, count // 2):
            break
        chosen.add(number)
    for number in np.linspace(0, total - 1, max(MIN_PICTURES, count)).round().astype(int):
        if len(chosen) < count:
            chosen.add(int(number))
    return chosen


def table_row(entry: EpisodeEntry) -> Json:
    """What the page's list says of an episode."""
    metrics = entry.metrics
    error_m = metrics.navigation_error_m
    return {
        "key": entry.key,
        "outcome": report.failure_kind(metrics) or "success",
        "instruction": entry.instruction,
        "spl": metrics.spl,
        "error_m": error_m if math.isfinite(error_m) else None,
        "start_m": metrics.start_distance_m,
        "num_decisions": metrics.num_decisions,
        "num_collisions": metrics.num_collisions,
    }


def _corners(points: np.ndarray) -> list[list[float]]:
    return np.round(np.asarray(points, dtype=float), ROUNDED_TO_DIGITS).tolist()


def _at(values: Sequence[Any], number: int) -> Any:
    return values[number] if number < len(values) else None

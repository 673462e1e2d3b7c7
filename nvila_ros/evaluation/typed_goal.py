# SPDX-License-Identifier: Apache-2.0
"""Typed goal: an episode whose instruction a person typed is judged by the thing that it names."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from nvila_ros.evaluation.metrics import resample
from nvila_ros.sim.drafts import GOAL_DISTANCE_M, TRACE_STEPS
from nvila_ros.sim.episodes import PATH_SPACING_M, Episode
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import unique_furniture
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.scene import CATEGORIES, COLOURS, Furniture

MAX_SUGGESTIONS = 8


def with_instruction(episode: Episode, instruction: str) -> tuple[Episode, bool]:
    """The episode under a typed instruction, and whether its goal could be read from the text.

    The goal is the last piece that the text names by colour and category, if that name is unique in
    the apartment and the robot can get there; otherwise the goal stays as it was.
    """
    typed = dataclasses.replace(episode, instruction=instruction)
    piece = last_named(typed, instruction)
    if piece is None:
        return typed, False
    if piece.id == episode.goal_furniture_id:
        return typed, True
    planner = Planner(OccupancyGrid.from_scene(episode.scene), np.array([_place_before(piece)]))
    start = np.array([episode.start])
    geodesic_m = float(planner.distance_m(start)[0])
    if not np.isfinite(geodesic_m):
        return typed, False
    trail = planner.trace(start, TRACE_STEPS)[0]
    goal = planner.goals[0]
    return dataclasses.replace(
        typed,
        goal=(float(goal[0]), float(goal[1])),
        goal_furniture_id=piece.id,
        geodesic_m=geodesic_m,
        path=tuple((float(x), float(y)) for x, y in resample(trail, PATH_SPACING_M)),
    ), True


def last_named(episode: Episode, text: str) -> Furniture | None:
    """The uniquely named piece whose '<colour> <category>' stands last in the text."""
    unique = {_name(piece): piece for piece in unique_furniture(episode.scene)}
    return next((unique[name] for name in reversed(_names(text)) if name in unique), None)


def goal_name(episode: Episode) -> str:
    """'<colour> <category>' of the piece that the episode is judged by."""
    ids = {piece.id: piece for piece in episode.scene.furniture}
    return _name(ids[episode.goal_furniture_id])


def goal_notes(episode: Episode, *, was_named: bool) -> list[str]:
    """What a person must know where the goal is not the last thing that the instruction names.

    Takes the answer of `with_instruction`; two lines, or none where the goal is what was named.
    """
    wished, goal = next(reversed(_names(episode.instruction)), None), goal_name(episode)
    if was_named and wished == goal:
        return []
    here = [_name(piece) for piece in episode.scene.furniture]
    if wished is None:
        reason = "the sentence names no thing by colour and kind"
    elif wished not in here:
        reason = f"this apartment has no {wished}"
    elif here.count(wished) > 1:
        reason = f"this apartment has more than one {wished}"
    else:
        reason = f"no way leads to the {wished}"
    judge = f"the {goal}" if was_named else f"the episode's own goal, the {goal}"
    category = None if wished is None else wished.partition(" ")[2]
    named = [piece for piece in unique_furniture(episode.scene) if _name(piece) != wished]
    named.sort(key=lambda piece: piece.category != category)
    things = [_name(piece) for piece in named]
    left = len(things) - MAX_SUGGESTIONS
    more = f" and {left} more" if left > 0 else ""
    return [
        f"{reason}; judged by {judge}",
        f"things here: {', '.join(things[:MAX_SUGGESTIONS])}{more}",
    ]


def _names(text: str) -> list[str]:
    """Every '<colour> <category>' in the text, in its order, be it there or not."""
    pattern = rf"\b({'|'.join(COLOURS)}) ({'|'.join(CATEGORIES)})(?:s|es)?\b"
    return [" ".join(words) for words in re.findall(pattern, " ".join(text.lower().split()))]


def _name(piece: Furniture) -> str:
    return f"{piece.colour} {piece.category}"


def _place_before(piece: Furniture) -> np.ndarray:
    """(2,) the place where the robot should stop: in front of the piece."""
    centre = np.array([piece.x_m, piece.y_m])
    return centre + piece.front * (piece.depth_m / 2 + GOAL_DISTANCE_M)

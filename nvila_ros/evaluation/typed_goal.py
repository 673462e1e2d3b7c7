# SPDX-License-Identifier: Apache-2.0
"""Typed goal: an episode whose instruction a person typed is judged by the thing that it names."""

from __future__ import annotations

import dataclasses

import numpy as np

from nvila_ros.evaluation.metrics import resample
from nvila_ros.sim.episodes import GOAL_DISTANCE_M, PATH_SPACING_M, TRACE_STEPS, Episode
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import unique_furniture
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.scene import Furniture


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
    words = " ".join(text.lower().split())
    places = {
        words.rfind(f"{piece.colour} {piece.category}"): piece
        for piece in unique_furniture(episode.scene)
    }
    last = max(places)
    return places[last] if last >= 0 else None


def _place_before(piece: Furniture) -> np.ndarray:
    """(2,) the place where the robot should stop: in front of the piece."""
    centre = np.array([piece.x_m, piece.y_m])
    return centre + piece.front * (piece.depth_m / 2 + GOAL_DISTANCE_M)

# SPDX-License-Identifier: Apache-2.0
"""Samples about single rendered views: captions, scene text and questions with exact answers.

Every text is true by construction: it is read off the segmentation that the renderer drew for the
view. The last part of a sample's key names its task, by which scores are told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nvila_ros.sim import motion
from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import unique_furniture
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.scene import Scene
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.questions import (
    FREE_WORDS,
    SeenObject,
    absent_question,
    distance_words,
    side_words,
    what_question,
    where_question,
)
from nvila_ros.training.view_labels import LandmarkTable

MIN_SHARE = 0.004  # of the picture for a thing to be named
MIN_CLEARANCE_M = 0.30
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
SHORT_CAPTION_THINGS, LONG_CAPTION_THINGS = 2, 8


@dataclass(frozen=True, eq=False)
class View:
    """One picture and what is in it."""

    picture: np.ndarray  # (S, S, 3) uint8
    seen: list[SeenObject]
    absent: list[str]
    room: str
    free_units: int  # of 25 cm that are free ahead, 0 to 3


@dataclass(frozen=True, eq=False)
class ViewSet:
    """Views of one apartment."""

    seed: int
    scene: Scene
    views: list[View]


def look_around(seed: int, num_views: int, side_px: int, rng: np.random.Generator) -> ViewSet:
    """Views from random places of the apartment of a seed, in a random light."""
    from nvila_ros.sim.renderer import Renderer  # needs OpenGL
    from nvila_ros.sim.world import World

    scene = generate_scene(seed)
    grid = OccupancyGrid.from_scene(scene)
    roomy = np.argwhere(grid.free & (grid.clearance_m >= MIN_CLEARANCE_M))
    places = grid.centre(roomy[rng.integers(len(roomy), size=num_views)])
    poses = np.concatenate([places, rng.uniform(-np.pi, np.pi, (num_views, 1))], axis=1)
    free_m = motion.free_forward(grid, poses)
    views = []
    with Renderer(World(scene, Appearance.random(rng)), side_px, side_px, batch=16) as renderer:
        table = LandmarkTable(scene, renderer.world.landmarks)
        pictures = renderer.render_batch(poses)
        for pose, picture, ids, free in zip(
            poses, pictures, renderer.segment_batch(poses), free_m, strict=True
        ):
            room = scene.room_at(float(pose[0]), float(pose[1]))
            views.append(
                View(
                    picture=np.ascontiguousarray(picture),
                    seen=table.seen(ids, pose, MIN_SHARE),
                    absent=table.absent(ids),
                    room="apartment" if room is None else room.kind,
                    free_units=int(free / motion.UNIT_FORWARD_M + 1e-6),
                )
            )
    return ViewSet(seed, scene, views)


def caption_samples(found: ViewSet, rng: np.random.Generator, source: str) -> list[Sample]:
    """Stages 1 and 2: one short sentence per view."""
    return [
        _sample(found, number, view, source, "caption", "Describe it.", _caption(view, False))
        for number, view in enumerate(found.views)
    ]


def text_samples(found: ViewSet, rng: np.random.Generator, source: str) -> list[Sample]:
    """Stage 3: a long caption per view, and as many questions about the apartment in text alone."""
    samples = []
    rooms = _listed(found.scene)
    for number, view in enumerate(found.views):
        question = "Where is each thing?"
        answer = _caption(view, True)
        samples.append(_sample(found, number, view, source, "long_caption", question, answer))
        things = [(room, name) for room, names in rooms.items() for name in names]
        if things:
            room, name = things[rng.integers(len(things))]
            text = " ".join(f"In the {r}: {', '.join(names)}." for r, names in rooms.items())
            turn = Turn(user=f"{text} Where is the {name}?", answer=f"It is in the {room}.")
            key = f"{found.seed}/{number}/scene_text"
            samples.append(Sample(key=key, source=source, kind="text", frames=(), turns=(turn,)))
    return samples


def question_samples(
    found: ViewSet, rng: np.random.Generator, source: str, num_questions: int = 4
) -> list[Sample]:
    """Stage 4: questions of different tasks about each view; they share its picture."""
    samples = []
    for number, view in enumerate(found.views):
        asked = [(task, ask(rng, view)) for task, ask in QUESTIONS.items()]
        possible = [(task, pair) for task, pair in asked if pair is not None]
        for index in rng.permutation(len(possible))[:num_questions]:
            task, (question, answer) = possible[index]
            samples.append(_sample(found, number, view, source, task, question, answer))
    return samples


def _sample(
    found: ViewSet, number: int, view: View, source: str, task: str, question: str, answer: str
) -> Sample:
    return Sample(
        key=f"{found.seed}/{number}/{task}",
        source=source,
        kind="image",
        frames=(view.picture,),
        turns=(Turn(user=f"<image>\n{question}", answer=answer),),
        group=f"{found.seed}/{number}",
    )


def _caption(view: View, long: bool) -> str:
    """The largest things, or all of them from left to right with their distances."""
    count = LONG_CAPTION_THINGS if long else SHORT_CAPTION_THINGS
    things = sorted(view.seen, key=lambda thing: -thing.share)[:count]
    if long:
        things.sort(key=lambda thing: -thing.bearing_rad)
    parts = [
        f"the {thing.name} {side_words(thing.bearing_rad)}"
        + (f", {distance_words(thing.distance_m)}" if long else "")
        for thing in things
    ]
    text = ("; " if long else " and ").join([*parts]) or "nothing"
    return f"In the {view.room}: {text}."


def _listed(scene: Scene) -> dict[str, list[str]]:
    """Kind of room -> names that are unique in the apartment, in the order of the scene."""
    rooms: dict[str, list[str]] = {}
    kinds = {room.id: room.kind for room in scene.rooms}
    for piece in unique_furniture(scene):
        rooms.setdefault(kinds[piece.room_id], []).append(f"{piece.colour} {piece.category}")
    return rooms


Pair = tuple[str, str]


def _where(rng: np.random.Generator, view: View) -> Pair | None:
    return where_question(rng, _named_once(view.seen)) if _named_once(view.seen) else None


def _absent(rng: np.random.Generator, view: View) -> Pair | None:
    return absent_question(rng, view.seen, view.absent) if view.absent else None


def _object(rng: np.random.Generator, view: View) -> Pair | None:
    return what_question(rng, view.seen) if view.seen else None


def _colour(rng: np.random.Generator, view: View) -> Pair | None:
    counts = Counter(thing.category for thing in view.seen)
    single = [thing for thing in view.seen if counts[thing.category] == 1]
    if not single:
        return None
    thing = single[rng.integers(len(single))]
    return f"Which color is the {thing.category}?", f"{thing.colour.capitalize()}."


def _count(rng: np.random.Generator, view: View) -> Pair | None:
    counts = Counter(thing.category for thing in view.seen)
    if not counts or max(counts.values()) >= len(NUMBERS):
        return None
    category = sorted(counts)[rng.integers(len(counts))]
    return f"Count: {category}?", f"{NUMBERS[counts[category]].capitalize()}."


def _side(rng: np.random.Generator, view: View) -> Pair | None:
    aside = [t for t in _named_once(view.seen) if abs(t.bearing_rad) > np.radians(7.5)]
    if not aside:
        return None
    thing = aside[rng.integers(len(aside))]
    side = "Left" if thing.bearing_rad > 0 else "Right"
    return f"Left or right: the {thing.name}?", f"{side}."


def _distance(rng: np.random.Generator, view: View) -> Pair | None:
    things = _named_once(view.seen)
    if not things:
        return None
    thing = things[rng.integers(len(things))]
    return f"How far is the {thing.name}?", f"{distance_words(thing.distance_m).capitalize()}."


def _room(rng: np.random.Generator, view: View) -> Pair | None:
    return "Which room is this?", f"This is the {view.room}."


def _free(rng: np.random.Generator, view: View) -> Pair | None:
    return "How far can you move forward?", f"{FREE_WORDS[view.free_units]}."


QUESTIONS: dict[str, Callable[[np.random.Generator, View], Pair | None]] = {
    "where": _where,
    "absent": _absent,
    "object": _object,
    "color": _colour,
    "count": _count,
    "side": _side,
    "distance": _distance,
    "room": _room,
    "free": _free,
}


def _named_once(seen: list[SeenObject]) -> list[SeenObject]:
    counts = Counter(thing.name for thing in seen)
    return [thing for thing in seen if counts[thing.name] == 1]

# SPDX-License-Identifier: Apache-2.0
"""Words for routes: what is said, in which order, and when a route is refused."""

import math
import re

import numpy as np
import pytest

from nvila_ros.sim.instructions import (
    VOCABULARY_WORDS,
    Clause,
    Sightings,
    compose,
    describe,
    unique_furniture,
)
from nvila_ros.sim.route import Route
from nvila_ros.sim.scene import Door, Furniture, Room, Scene


def make_scene():
    """Two rooms, a red doorway at (5, 2), and in the bedroom a pink desk and two black boxes."""
    walls = ("white", (0.9, 0.9, 0.9), "plaster", "planks")
    rooms = (
        Room(0, "kitchen", 0.0, 0.0, 5.0, 6.0, *walls),
        Room(1, "bedroom", 5.0, 0.0, 10.0, 6.0, *walls),
    )
    doors = (Door(0, 5.0, 2.0, "y", (0, 1), "red", "frame", 1, 1),)
    pieces = (
        Furniture(0, "desk", "pink", 9.4, 2.0, math.pi, 0.6, 1.3, 1.1, 1, True),
        Furniture(1, "box", "black", 7.0, 5.0, 0.0, 0.5, 0.5, 0.4, 1, True),
        Furniture(2, "box", "black", 9.0, 5.0, 0.0, 0.5, 0.5, 0.4, 1, True),
        Furniture(3, "sofa", "blue", 2.7, 3.0, -math.pi / 2, 0.85, 1.9, 0.8, 0, True),
    )
    return Scene(0, 10.0, 6.0, rooms, doors, pieces)


STRAIGHT = ((1, 2), (8.4, 2))
ALL = ("door:0", "furniture:0", "furniture:3")


def tell(path=STRAIGHT, yaw_deg=0.0, seen=ALL, seed=0):
    scene = make_scene()
    route = Route.from_path(scene, np.array(path, dtype=float))
    arc_m, _ = route.camera_poses()
    sightings = Sightings(arc_m, [dict.fromkeys(seen, 0.05)] * len(arc_m))
    rng = np.random.default_rng(seed)
    return describe(route, math.radians(yaw_deg), scene.furniture[0], sightings, rng)


def kinds(clauses):
    return [clause.kind for clause in clauses]


def test_door_and_goal_are_named_with_colour_and_room():
    clauses = [clause for clause in tell() if clause.kind != "pass"]
    assert kinds(clauses) == ["door", "goal"]
    assert "red doorway" in clauses[0].text and "bedroom" in clauses[0].text
    assert "pink desk" in clauses[1].text
    assert [clause.landmark for clause in clauses] == ["door:0", "furniture:0"]


@pytest.mark.parametrize(
    ("yaw_deg", "words"), [(-90, "left"), (90, "right"), (180, "around|back"), (20, None)]
)
def test_first_turn_faces_the_path(yaw_deg, words):
    first = tell(yaw_deg=yaw_deg)[0]
    assert (first.kind == "turn") == (words is not None)
    if words:
        assert re.search(words, first.text)


def test_clauses_follow_the_path():
    for seed in range(5):
        arcs_m = [clause.arc_m for clause in tell(yaw_deg=90, seed=seed)]
        assert arcs_m == sorted(arcs_m)
        assert arcs_m[-1] == pytest.approx(7.4)


def test_a_piece_on_the_way_is_passed_on_its_side():
    passes = [clause for seed in range(8) for clause in tell(seed=seed) if clause.kind == "pass"]
    assert passes and all("blue sofa on your left" in clause.text for clause in passes)


def test_routes_to_what_is_never_seen_are_refused():
    assert tell(seen=("furniture:0",)) is None
    assert tell(seen=("door:0",)) is None


def test_things_that_are_not_seen_are_not_mentioned():
    for seed in range(8):
        assert "pass" not in kinds(tell(seen=("door:0", "furniture:0"), seed=seed))


def test_turn_behind_a_door_is_said_only_where_the_goal_is_not_in_view():
    path = ((1, 2), (5.8, 2), (6.2, 5), (8.4, 2))
    scene = make_scene()
    route = Route.from_path(scene, np.array(path, dtype=float))
    arc_m, _ = route.camera_poses()
    late = [{"door:0": 0.1, **({"furniture:0": 0.1} if arc > 8 else {})} for arc in arc_m]
    rng = np.random.default_rng(0)
    clauses = describe(route, 0.0, scene.furniture[0], Sightings(arc_m, late), rng)
    assert "turn" in kinds(clauses) and "left" in clauses[1].text
    assert "turn" not in kinds(tell(path))


def test_only_unique_names_serve():
    assert [piece.id for piece in unique_furniture(make_scene())] == [0, 3]


def test_sentences_are_well_formed_and_words_known():
    rng = np.random.default_rng(1)
    steps = [
        Clause("turn left", "turn", 0.2),
        Clause("at the red sofa, turn right", "turn", 1.0),
        Clause("go through the blue door into the kitchen", "door", 2.0),
        Clause("walk to the pink desk and wait there", "goal", 5.0),
    ]
    for _ in range(50):
        text = compose(steps, rng)
        assert text[0].isupper() and text.endswith(".") and ".." not in text and "  " not in text
        sentences = text[:-1].split(". ")
        assert all(sentence[0].isupper() for sentence in sentences)
        assert all(sentence.count(" and ") <= 1 for sentence in sentences)
        assert set(re.findall(r"[a-z]+", text.lower())) <= VOCABULARY_WORDS

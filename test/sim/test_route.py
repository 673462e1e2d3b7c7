# SPDX-License-Identifier: Apache-2.0
"""What is noticed along a path through two hand-made rooms."""

import math

import numpy as np
import pytest

from nvila_ros.sim.route import Route
from nvila_ros.sim.scene import Door, Furniture, Room, Scene


def make_scene():
    """A kitchen (x < 5 m) and a bedroom (x > 5 m), a red door at (5, 2), a blue sofa at (2, 3)."""
    walls = ("white", (0.9, 0.9, 0.9), "plaster", "planks")
    rooms = (
        Room(0, "kitchen", 0.0, 0.0, 5.0, 6.0, *walls),
        Room(1, "bedroom", 5.0, 0.0, 10.0, 6.0, *walls),
    )
    doors = (
        Door(0, 5.0, 2.0, "y", (0, 1), "red", "frame", 1, 1),
        Door(1, 0.0, 4.0, "y", (0,), "green", "closed", 1, 1),
    )
    sofa = Furniture(0, "sofa", "blue", 2.5, 3.0, -math.pi / 2, 0.85, 1.9, 0.8, 0, True)
    desk = Furniture(1, "desk", "pink", 9.0, 5.0, math.pi, 0.6, 1.3, 1.1, 1, True)
    return Scene(0, 10.0, 6.0, rooms, doors, (sofa, desk))


def make_route(*points):
    return Route.from_path(make_scene(), np.array(points, dtype=float))


def test_samples_are_ten_centimetres_apart():
    route = make_route((1, 2), (4, 2), (4, 4))
    assert route.length_m == pytest.approx(5.0)
    assert np.diff(route.arc_m) == pytest.approx(np.full(50, 0.1))
    assert route.at(3.5).tolist() == pytest.approx([4.0, 2.5])


def test_door_is_crossed_once_with_its_direction():
    (crossing,) = make_route((1, 2), (8, 2)).crossings()
    assert crossing.door.colour == "red" and crossing.room_id == 1
    assert crossing.arc_m == pytest.approx(4.0, abs=0.11)
    assert crossing.direction_rad == pytest.approx(0.0)


def test_going_in_and_straight_out_again_is_no_crossing():
    assert make_route((4, 2), (5.3, 2), (5.3, 2.2), (4, 2.2)).crossings() == []


def test_bend_in_a_room_is_found_with_its_side():
    route = make_route((1, 1), (4, 1), (4, 5))
    (bend,) = route.bends(route.crossings())
    assert bend.arc_m == pytest.approx(3.0, abs=0.2)
    assert math.degrees(bend.angle_rad) == pytest.approx(90, abs=5)


def test_gentle_curve_is_no_bend():
    route = make_route((1, 1), (2.5, 1.4), (4, 2.4))
    assert route.bends(route.crossings()) == []


def test_bend_behind_a_door_belongs_to_the_door():
    route = make_route((1, 2), (5.8, 2), (5.8, 0.5))
    (bend,) = route.bends(route.crossings())
    assert bend.after_door and bend.angle_rad < -math.radians(40)


@pytest.mark.parametrize(
    ("points", "left"), [(((0.5, 2), (4.5, 2)), True), (((4.5, 2), (0.5, 2)), False)]
)
def test_side_on_which_a_piece_is_passed(points, left):
    route = make_route(*points)
    (passing,) = route.passings(list(route.scene.furniture))
    assert passing.furniture.category == "sofa" and passing.left is left


def test_camera_looks_along_the_route():
    arc_m, poses = make_route((1, 1), (4, 1), (4, 5)).camera_poses()
    assert poses[0].tolist() == pytest.approx([1, 1, 0])
    assert poses[-1].tolist() == pytest.approx([4, 5, math.pi / 2])
    assert np.diff(arc_m).max() < 0.701

# SPDX-License-Identifier: Apache-2.0
"""Rectangles: overlap, distance, rays and what doors leave of a wall."""

import math

import numpy as np
import pytest

from nvila_ros.sim.geometry import (
    Obstacle,
    blocked_cells,
    cast_rays,
    distances_m,
    door_leaf,
    obstacles,
    rectangle_table,
    rectangles_overlap,
    wall_sides,
    wall_spans,
)
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.scene import Door, Room, rectangle_corners

UNIT = Obstacle("wall", None, 0.0, 0.0, 0.0, 0.5, 0.5, 1.0)


def test_rotated_squares_overlap_by_their_corners_only():
    square = rectangle_corners(0, 0, 0, 0.5, 0.5)[None]
    diamond = np.stack([rectangle_corners(x, 0, math.pi / 4, 0.5, 0.5) for x in (1.15, 1.25)])
    assert rectangles_overlap(square, diamond).tolist() == [[True, False]]


def test_touching_rectangles_do_not_overlap():
    square = rectangle_corners(0, 0, 0, 0.5, 0.5)[None]
    assert not rectangles_overlap(square, square + np.array([1.0, 0.0])).any()


def test_distances_are_zero_inside_and_round_at_corners():
    table = rectangle_table([UNIT])
    points = np.array([[0.2, 0.1], [1.5, 0.0], [0.8, 0.9]])
    assert distances_m(points, table)[:, 0] == pytest.approx([0, 1.0, 0.5])


def test_rays_hit_the_nearest_face():
    table = rectangle_table([UNIT, Obstacle("wall", None, 3, 0, math.pi / 4, 0.5, 0.5, 1)])
    rays = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    hits = cast_rays(np.array([1.5, 0.0]), rays, table)
    assert hits == pytest.approx([3 - math.sqrt(0.5) - 1.5, 1.0, np.inf])


def test_a_ray_that_grazes_parallel_to_a_face_is_finite_or_inf_never_nan():
    hits = cast_rays(np.array([-2.0, 0.5]), np.array([[1.0, 0.0]]), rectangle_table([UNIT]))
    assert not np.isnan(hits).any()


def test_blocked_cells_grow_by_the_margin():
    cells = np.arange(-1.0, 1.01, 0.1)
    blocked = blocked_cells([UNIT], cells, cells, 0.2)
    assert blocked[10 + 6, 10] and not blocked[10 + 8, 10]
    assert not blocked[10 + 7, 10 + 7]  # 0.28 m from the corner


def test_a_closed_door_leaves_the_wall_whole():
    room = Room(0, "office", 0, 0, 4, 4, "white", (1, 1, 1), "plaster", "tile")
    side = wall_sides(room)[0]
    opened = Door(0, 2.0, 0.0, "x", (0, 1), "red", "leaf", 1, 1)
    closed = Door(1, 2.0, 0.0, "x", (0,), "red", "closed", 1, 1)
    assert wall_spans(side, (opened,)) == [(0, 1.5), (2.5, 4)]
    assert wall_spans(side, (closed,)) == [(0, 4)]


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("swing", [-1, 1])
@pytest.mark.parametrize("hinge", [-1, 1])
def test_an_open_leaf_stands_on_its_side_and_clears_the_hole(axis, swing, hinge):
    door = Door(0, 5.0, 5.0, axis, (0, 1), "red", "leaf", swing, hinge)
    offset = door_leaf(door).corners() - [5.0, 5.0]
    assert (offset @ door.across * swing > 0.05).all()
    assert (offset @ door.along * hinge > 0.47).all()


def test_obstacles_name_their_landmarks():
    scene = generate_scene(2)
    keys = {item.key for item in obstacles(scene)}
    assert {piece.key for piece in scene.furniture if piece.solid} <= keys
    assert {door.key for door in scene.doors} <= keys

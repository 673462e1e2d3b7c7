# SPDX-License-Identifier: Apache-2.0
"""The floor plan: where the robot fits and how far obstacles are."""

import numpy as np
import pytest

from nvila_ros.errors import SceneError
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.layout import generate_scene


def make_room(*walls):
    """A free map of 6 m by 4 m with occupied rectangles (x0, y0, x1, y1) in metres."""
    occupied = np.zeros((120, 80), dtype=bool)
    for x0, y0, x1, y1 in walls:
        occupied[round(x0 * 20) : round(x1 * 20), round(y0 * 20) : round(y1 * 20)] = True
    return OccupancyGrid.from_occupied(occupied)


def test_robot_fits_only_where_its_radius_is_clear():
    grid = make_room((3, 0, 3.2, 2))
    assert grid.is_free([2.5, 1.0])
    assert not grid.is_free([2.85, 1.0])
    assert not grid.is_free([3.1, 1.0])


def test_clearance_is_the_distance_to_the_nearest_obstacle():
    grid = make_room((3, 0, 3.2, 2))
    assert grid.clearance_at([2.525, 1.025]) == pytest.approx(0.475, abs=0.03)


def test_snap_moves_only_points_that_are_not_free():
    grid = make_room((3, 0, 3.2, 2))
    snapped = grid.snap(np.array([[1.01, 1.02], [2.9, 1.0]]))
    assert snapped[0].tolist() == [1.01, 1.02]
    assert grid.is_free(snapped[1]) and np.linalg.norm(snapped[1] - [2.9, 1.0]) < 0.25


def test_points_outside_the_map_are_not_free():
    grid = make_room()
    assert not grid.is_free(np.array([[-5.0, 1.0], [50.0, 1.0]])).any()


def test_only_the_largest_component_is_free():
    grid = make_room((2, 0, 2.2, 4))
    assert grid.is_free([4.0, 2.0])
    assert not grid.is_free([1.0, 2.0])


def test_full_map_is_an_error():
    with pytest.raises(SceneError, match="no free cell"):
        OccupancyGrid.from_occupied(np.ones((40, 40), dtype=bool))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scene_rooms_are_connected_through_open_doors(seed):
    scene = generate_scene(seed)
    grid = OccupancyGrid.from_scene(scene)
    for door in scene.doors:
        assert grid.is_free([door.x_m, door.y_m]) == (door.style != "closed")
    for piece in scene.furniture:
        assert not (piece.solid and grid.is_free([piece.x_m, piece.y_m]))

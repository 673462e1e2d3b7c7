# SPDX-License-Identifier: Apache-2.0
"""Distance fields against exact geometry."""

import numpy as np
import pytest

from nvila_ros.errors import SceneError
from nvila_ros.sim.geodesic import distance_fields

RESOLUTION_M = 0.05


def make_free(num_x=160, num_y=120):
    free = np.zeros((num_x, num_y), dtype=bool)
    free[1:-1, 1:-1] = True
    return free


def cell_distance_m(shape, cell):
    i, j = np.indices(shape)
    return np.hypot(i - cell[0], j - cell[1]) * RESOLUTION_M


def test_open_floor_is_euclidean_within_two_percent():
    free = make_free()
    exact = cell_distance_m(free.shape, (40, 50))
    field = distance_fields(free, [[40, 50]], RESOLUTION_M)[0]
    far = free & (exact > 0.3)
    assert (np.abs(field - exact)[far] / exact[far]).max() < 0.02


def test_around_a_corner_within_two_percent():
    free = make_free()
    free[80, :60] = False  # a wall up to y = 3 m: the shortest way bends at its end
    goal, corner = (50, 20), (80, 60)
    beyond = free & (np.indices(free.shape)[0] > 90) & (np.indices(free.shape)[1] < 50)
    to_corner = np.hypot(goal[0] - corner[0], goal[1] - corner[1]) * RESOLUTION_M
    exact = to_corner + cell_distance_m(free.shape, corner)
    field = distance_fields(free, [goal], RESOLUTION_M)[0]
    assert (np.abs(field - exact)[beyond] / exact[beyond]).max() < 0.02


def test_goals_are_independent_of_each_other():
    free = make_free(60, 50)
    free[30, 5:] = False
    goals = np.array([[10, 10], [50, 40], [33, 3]])
    together = distance_fields(free, goals, RESOLUTION_M)
    for goal, field in zip(goals, together, strict=True):
        alone = distance_fields(free, goal[None], RESOLUTION_M)[0]
        assert np.allclose(alone[free], field[free], atol=2e-3)
        assert field[tuple(goal)] == 0


def test_unreachable_and_occupied_cells_are_infinite():
    free = make_free(60, 50)
    free[30] = False
    field = distance_fields(free, [[10, 10]], RESOLUTION_M)[0]
    assert np.isinf(field[~free]).all() and np.isinf(field[40, 20])
    assert np.isfinite(field[20, 20])


def test_half_the_speed_doubles_the_time():
    free = make_free(60, 50)
    full = distance_fields(free, [[10, 10]], RESOLUTION_M, np.ones(free.shape))[0]
    half = distance_fields(free, [[10, 10]], RESOLUTION_M, np.full(free.shape, 0.5))[0]
    assert np.allclose(half[free], 2 * full[free], rtol=5e-3)


def test_slow_ground_is_avoided():
    free = make_free(100, 60)
    speed = np.ones(free.shape)
    speed[40:60, :45] = 0.2
    field = distance_fields(free, [[20, 10]], RESOLUTION_M, speed)[0]
    through_m, around_m = 60 * RESOLUTION_M + 20 * RESOLUTION_M * 4, 90 * RESOLUTION_M * 1.25
    assert field[80, 10] < min(through_m, around_m)


def test_goal_in_a_wall_is_an_error():
    with pytest.raises(SceneError, match="not free"):
        distance_fields(make_free(20, 20), [[0, 5]], RESOLUTION_M)

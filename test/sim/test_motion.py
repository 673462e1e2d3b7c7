# SPDX-License-Identifier: Apache-2.0
"""What the ten motions do to poses."""

import math

import numpy as np
import pytest

from nvila_ros.sim import motion
from nvila_ros.sim.grid import OccupancyGrid


@pytest.fixture
def grid():
    """An empty map of 4 m by 4 m: the robot's centre can go from 0.25 m to 3.75 m."""
    return OccupancyGrid.from_occupied(np.zeros((80, 80), dtype=bool))


def test_order_of_the_motions():
    assert [round(m.forward_m * 100) for m in motion.MOTIONS] == [0, 25, 50, 75, 0, 0, 0, 0, 0, 0]
    degrees = [round(math.degrees(m.turn_rad)) for m in motion.MOTIONS]
    assert degrees == [0, 0, 0, 0, 15, 30, 45, -15, -30, -45]


def test_units_add_up_to_the_motion():
    for whole in motion.MOTIONS:
        parts = motion.units(whole)
        assert sum(part.forward_m for part in parts) == pytest.approx(whole.forward_m)
        assert sum(part.turn_rad for part in parts) == pytest.approx(whole.turn_rad)
        assert len(parts) == whole.num_units


def test_a_frame_pose_after_every_unit(grid):
    moved = motion.apply(grid, np.array([[1.0, 2.0, 0.0]]), np.array([3]))
    assert moved.unit_poses[0, :, 0].tolist() == pytest.approx([1.25, 1.5, 1.75])
    assert moved.num_units[0] == 3 and not moved.collided[0]


def test_left_is_counter_clockwise_and_headings_wrap(grid):
    moved = motion.apply(grid, np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]]), np.array([6, 7]))
    assert moved.poses[:, 2].tolist() == pytest.approx(
        [3.0 + math.pi / 4 - 2 * math.pi, -math.pi / 12]
    )
    assert moved.unit_poses[1, :, 2].tolist() == pytest.approx([-math.pi / 12] * 3)
    assert moved.num_units.tolist() == [3, 1]


def test_stop_moves_nothing(grid):
    moved = motion.apply(grid, np.array([[1.0, 2.0, 0.5]]), np.array([motion.STOP]))
    assert moved.poses[0].tolist() == [1.0, 2.0, 0.5]
    assert moved.num_units[0] == 0


def test_forward_stops_at_the_last_free_5_cm(grid):
    moved = motion.apply(grid, np.array([[3.3, 2.0, 0.0]]), np.array([3]))
    assert moved.collided[0] and moved.num_units[0] == 2
    assert moved.poses[0, 0] == pytest.approx(3.7)
    assert grid.is_free(moved.poses[0])


def test_robot_inside_the_inflated_zone_can_leave_it_but_not_go_deeper(grid):
    poses = np.array([[3.85, 2.0, math.pi], [3.85, 2.0, 0.0]])
    moved = motion.apply(grid, poses, np.array([1, 1]))
    assert moved.collided.tolist() == [False, True]
    assert moved.poses[:, 0].tolist() == pytest.approx([3.6, 3.85])

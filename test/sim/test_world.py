# SPDX-License-Identifier: Apache-2.0
"""The robot drives, stops at walls and measures distances."""

import math

import numpy as np
import pytest

from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.scene import Furniture, Room, Scene
from nvila_ros.sim.world import ROBOT_RADIUS_M, World


@pytest.fixture(scope="module")
def box():
    """A bare room of 6 by 4 m with one box in it."""
    room = Room(0, "office", 0, 0, 6, 4, "white", (0.9, 0.9, 0.9), "plaster", "tile")
    piece = Furniture(0, "box", "red", 4.0, 2.0, 0.0, 0.5, 0.5, 0.5, 0, True)
    return World(Scene(0, 6.0, 4.0, (room,), (), (piece,)))


def test_free_driving_keeps_the_commanded_speed(box):
    box.set_pose((1.0, 1.0, 0.0))
    collided = [box.step(0.4, 0.0, 0.05) for _ in range(40)]
    assert not any(collided)
    assert box.pose == pytest.approx([1.8, 1.0, 0.0], abs=0.04)


def test_turning_keeps_the_commanded_rate(box):
    box.set_pose((1.0, 1.0, 0.0))
    for _ in range(20):
        box.step(0.0, 0.5, 0.1)
    assert box.pose == pytest.approx([1.0, 1.0, 1.0], abs=0.03)


def test_the_robot_stops_at_the_wall_by_its_radius(box):
    box.set_pose((5.0, 1.0, 0.0))
    collided = [box.step(0.4, 0.0, 0.05) for _ in range(60)]
    assert any(collided)
    assert box.pose[0] == pytest.approx(6.0 - 0.06 - ROBOT_RADIUS_M, abs=0.03)


def test_the_robot_does_not_drive_through_furniture(box):
    box.set_pose((3.0, 2.0, 0.0))
    for _ in range(60):
        box.step(0.5, 0.0, 0.05)
    assert box.pose[0] < 4.0 - 0.25 - ROBOT_RADIUS_M + 0.03


def test_zero_velocity_stands_still(box):
    box.set_pose((1.0, 1.0, 0.3))
    box.step(0.0, 0.0, 1.0)
    assert box.pose == pytest.approx([1.0, 1.0, 0.3], abs=1e-6)


def test_collides_agrees_with_the_outline(box):
    assert box.collides((4.0, 2.0, 0.0))
    assert box.collides((4.0 + 0.25 + 0.19, 2.0, 0.0))
    assert not box.collides((4.0 + 0.25 + 0.21, 2.0, 0.0))
    before = box.pose
    box.collides((1.0, 1.0, 1.0))
    assert (box.pose == before).all()


def test_the_scan_starts_ahead_and_turns_left(box):
    box.set_pose((2.0, 2.0, math.pi / 2))
    scan = box.scan(4)
    assert scan == pytest.approx([2.0 - 0.06, 2.0 - 0.06, 2.0 - 0.06, 1.75], abs=1e-6)


def test_landmarks_have_fixed_indices():
    scene = generate_scene(4)
    world = World(scene)
    assert world.landmarks[:4] == ["other", "floor", "wall", "ceiling"]
    keys = [door.key for door in scene.doors] + [piece.key for piece in scene.furniture]
    assert world.landmarks[4:] == keys
    assert set(np.unique(world.landmark_of_geom)) == set(range(len(world.landmarks)))


def test_a_world_is_the_same_every_time():
    poses = []
    for _ in range(2):
        world = World(generate_scene(4))
        world.set_pose((*world.scene.rooms[0].centre, 0.0))
        for _ in range(20):
            world.step(0.4, 0.3, 0.05)
        poses.append(world.pose)
    assert (poses[0] == poses[1]).all()

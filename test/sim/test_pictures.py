# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: one view of each room and a plan to scale."""

import numpy as np
import pytest
from PIL import Image

from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.pictures import room_poses, save_pictures, top_view, top_view_pixel
from nvila_ros.sim.scene import Furniture, Room, Scene
from nvila_ros.sim.world import World


def test_the_plan_is_to_scale():
    room = Room(0, "office", 0, 0, 6, 4, "white", (0.9, 0.9, 0.9), "plaster", "tile")
    piece = Furniture(0, "box", "red", 4.5, 3.0, 0.0, 0.6, 0.6, 0.5, 0, True)
    world = World(Scene(0, 6.0, 4.0, (room,), (), (piece,)))
    plan = top_view(world, pixels_per_metre=20, antialias=0)
    assert plan.shape == (80, 120, 3)
    red = (plan[..., 0] > 120) & (plan[..., 1] < 60)
    rows, columns = np.nonzero(red)
    ((column, row),) = top_view_pixel(world, [[4.5, 3.0]], 20)
    assert (columns.mean(), rows.mean()) == pytest.approx((column, row), abs=1)


def test_room_views_stand_inside_their_rooms():
    world = World(generate_scene(5))
    for room_id, pose in room_poses(world).items():
        assert world.scene.rooms[room_id].contains(*pose[:2])
        assert not world.collides(pose)


def test_files_are_written_for_every_room(tmp_path, monkeypatch):
    world = World(generate_scene(5))
    small = {f"{room.id}": np.zeros((4, 4, 3), np.uint8) for room in world.scene.rooms}
    monkeypatch.setattr("nvila_ros.sim.pictures.room_views", lambda world: small)
    paths = save_pictures(world, tmp_path / "out")
    assert len(paths) == len(world.scene.rooms) + 1
    assert Image.open(paths[-1]).size[0] == round(world.scene.width_m * 60)

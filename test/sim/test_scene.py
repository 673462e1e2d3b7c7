# SPDX-License-Identifier: Apache-2.0
"""Scenes survive being written and read, and malformed ones are refused."""

import json

import numpy as np
import pytest

from nvila_ros.errors import SceneError
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.scene import Furniture, Scene


def test_json_round_trip_is_exact():
    scene = generate_scene(5)
    text = json.dumps(scene.to_json())
    again = Scene.from_json(json.loads(text))
    assert again == scene
    assert again.digest == scene.digest


def test_a_missing_part_is_a_scene_error():
    data = generate_scene(5).to_json()
    del data["doors"]
    with pytest.raises(SceneError, match="malformed scene"):
        Scene.from_json(data)


def test_an_unknown_category_is_a_scene_error():
    data = generate_scene(5).to_json()
    data["furniture"][0]["category"] = "dragon"
    with pytest.raises(SceneError, match="dragon"):
        Scene.from_json(data)


def test_something_else_than_a_scene_is_a_scene_error():
    with pytest.raises(SceneError):
        Scene.from_json({"hello": "world"})


def test_corners_follow_the_front():
    piece = Furniture(0, "sofa", "red", 1.0, 2.0, np.pi / 2, 0.8, 2.0, 0.8, 0, True)
    assert piece.front == pytest.approx([0, 1])
    corners = piece.corners()
    assert corners.min(0) == pytest.approx([0.0, 1.6])
    assert corners.max(0) == pytest.approx([2.0, 2.4])
    assert piece.corners(0.1).max(0) == pytest.approx([2.1, 2.5])


def test_room_at_finds_the_room_of_a_point():
    scene = generate_scene(5)
    for room in scene.rooms:
        assert scene.room_at(*room.centre) == room
    assert scene.room_at(-1, -1) is None

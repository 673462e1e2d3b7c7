# SPDX-License-Identifier: Apache-2.0
"""What every generated apartment must be, whatever its seed."""

import numpy as np
import pytest
from scipy import ndimage

from nvila_ros.sim.furnishing import EXTRA_FURNITURE, ROOM_FURNITURE
from nvila_ros.sim.geometry import blocked_cells, door_leaf, obstacles, rectangles_overlap
from nvila_ros.sim.layout import SceneConfig, generate_scene
from nvila_ros.sim.scene import CATEGORIES, COLOURS, ROOM_KINDS

SEEDS = range(40)


@pytest.fixture(scope="module")
def scenes():
    return [generate_scene(seed) for seed in SEEDS]


def test_the_same_seed_gives_the_same_scene(scenes):
    assert generate_scene(7) == scenes[7]
    assert generate_scene(7).digest == scenes[7].digest
    assert scenes[7].digest != scenes[8].digest


def test_rooms_tile_the_flat(scenes):
    for scene in scenes:
        assert 3 <= len(scene.rooms) <= 5
        areas = [(r.x_max_m - r.x_min_m) * (r.y_max_m - r.y_min_m) for r in scene.rooms]
        assert sum(areas) == pytest.approx(scene.width_m * scene.height_m)
        assert len({room.kind for room in scene.rooms}) == len(scene.rooms)
        assert {room.kind for room in scene.rooms} <= set(ROOM_KINDS)


def test_there_are_20_to_30_pieces_of_furniture(scenes):
    for scene in scenes:
        assert 20 <= len(scene.furniture) <= 30
        assert [piece.id for piece in scene.furniture] == list(range(len(scene.furniture)))


def test_door_colours_are_unique_in_a_scene(scenes):
    for scene in scenes:
        colours = [door.colour for door in scene.doors]
        assert len(set(colours)) == len(colours)
        assert set(colours) <= set(COLOURS)


def test_furniture_stands_in_its_room_and_overlaps_nothing_solid(scenes):
    for scene in scenes:
        solid = [piece for piece in scene.furniture if piece.solid]
        outlines = np.array([piece.corners() for piece in solid])
        overlap = rectangles_overlap(outlines, outlines) & ~np.eye(len(solid), dtype=bool)
        assert not overlap.any()
        leaves = [leaf.corners() for door in scene.doors if (leaf := door_leaf(door))]
        if leaves:
            assert not rectangles_overlap(outlines, np.array(leaves)).any()
        for piece in scene.furniture:
            room = scene.rooms[piece.room_id]
            assert all(room.contains(x, y) for x, y in piece.corners())


def test_a_robot_of_20_cm_radius_reaches_every_room(scenes):
    for scene in scenes:
        x_m, y_m = np.arange(0.025, scene.width_m, 0.05), np.arange(0.025, scene.height_m, 0.05)
        labels, _ = ndimage.label(~blocked_cells(obstacles(scene), x_m, y_m, 0.22))
        main = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
        for room in scene.rooms:
            i = slice(*np.searchsorted(x_m, [room.x_min_m, room.x_max_m]))
            j = slice(*np.searchsorted(y_m, [room.y_min_m, room.y_max_m]))
            assert main[i, j].sum() > 0.8 * (labels[i, j] > 0).sum()


def test_wall_furniture_can_be_stopped_in_front_of(scenes):
    for scene in scenes:
        solid = [item for item in obstacles(scene) if item.kind != "door"]
        for piece in scene.furniture:
            if CATEGORIES[piece.category].placement == "wall":
                goal = np.array([piece.x_m, piece.y_m]) + piece.front * (piece.depth_m / 2 + 0.7)
                assert not blocked_cells(solid, goal[:1], goal[1:], 0.22).any()


def test_every_category_has_a_room():
    assert {name for names in ROOM_FURNITURE.values() for name in names} | set(
        EXTRA_FURNITURE
    ) == set(CATEGORIES)


def test_meshes_do_not_change_the_layout():
    plain, meshed = (generate_scene(3, SceneConfig(mesh_share=share)) for share in (0.0, 1.0))
    assert all(piece.mesh is None for piece in plain.furniture)
    assert any(piece.mesh for piece in meshed.furniture)
    assert [(p.x_m, p.y_m, p.colour) for p in plain.furniture] == [
        (p.x_m, p.y_m, p.colour) for p in meshed.furniture
    ]


def test_a_config_of_two_rooms_is_respected():
    scene = generate_scene(
        1, SceneConfig(min_rooms=2, max_rooms=2, min_furniture=5, max_furniture=8)
    )
    assert len(scene.rooms) == 2
    assert 5 <= len(scene.furniture) <= 8

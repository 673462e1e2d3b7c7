# SPDX-License-Identifier: Apache-2.0
"""What rays say of a landmark is what the drawn picture shows."""

import math

import numpy as np
import pytest

from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.sight import Sight
from nvila_ros.sim.world import World

SEEN_SHARE = 0.003


@pytest.fixture(scope="module")
def views():
    """Worlds, random poses in them, and the shares of the landmarks in the pictures there."""
    rng, found = np.random.default_rng(0), []
    for seed in (880_100, 880_103):
        scene = generate_scene(seed)
        world, grid = World(scene, Appearance.random(rng)), OccupancyGrid.from_scene(scene)
        places = grid.centre(np.argwhere(grid.free)[rng.integers(grid.free.sum(), size=16)])
        poses = np.concatenate([places, rng.uniform(-math.pi, math.pi, (16, 1))], axis=1)
        with Renderer(world, 128, 128, batch=16) as renderer:
            found.append((world, poses, renderer.visible(poses)))
    return found


def test_rays_agree_with_pictures(views):
    agreed, large_ones = [], []
    for world, poses, pictures in views:
        sight = Sight(world)
        for pose, picture in zip(poses, pictures, strict=True):
            for key in world.landmarks[4:]:
                share, drawn = sight.share(pose, key), picture.get(key, 0.0)
                agreed.append((share >= SEEN_SHARE) == (drawn >= SEEN_SHARE))
                if drawn > 0.03 and key.startswith("furniture"):
                    large_ones.append(share >= SEEN_SHARE)
    assert np.mean(agreed) > 0.96
    assert np.mean(large_ones) > 0.95 and len(large_ones) > 20


def test_a_wall_hides_and_the_back_sees_nothing(views):
    world = views[0][0]
    sight, scene = Sight(world), world.scene
    piece = max((p for p in scene.furniture if p.solid), key=lambda p: p.height_m)
    room = next(room for room in scene.rooms if room.id == piece.room_id)
    place = room.centre
    bearing_rad = math.atan2(piece.y_m - place[1], piece.x_m - place[0])
    assert sight.share(np.array([*place, bearing_rad]), piece.key) > SEEN_SHARE
    assert sight.share(np.array([*place, bearing_rad + math.pi]), piece.key) == 0
    outside = [(-3.0, place[1], 0.0), (scene.width_m + 3.0, place[1], math.pi)]
    assert [sight.share(np.array(pose), piece.key) for pose in outside] == [0, 0]

# SPDX-License-Identifier: Apache-2.0
"""Randomised looks: inside their ranges, repeatable, and true to colour words."""

import math

import numpy as np
import pytest

from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.scene import COLOURS


def test_random_looks_stay_in_the_training_range():
    for seed in range(50):
        look = Appearance.random(np.random.default_rng(seed))
        assert 1.08 <= look.camera_height_m <= 1.28
        assert abs(math.degrees(look.hfov_rad) - 90) <= 5
        assert abs(math.degrees(look.pitch_rad)) <= 3


def test_the_same_seed_gives_the_same_look():
    first, second = (Appearance.random(np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert first.tint((0.5, 0.2, 0.1), "door:0") == second.tint((0.5, 0.2, 0.1), "door:0")


def test_the_default_look_keeps_nominal_colours():
    assert Appearance.default().tint((0.5, 0.2, 0.1), "door:0") == (0.5, 0.2, 0.1)


@pytest.mark.parametrize("name", COLOURS)
def test_a_tinted_colour_is_still_nearest_to_its_own_name(name):
    table = np.array(list(COLOURS.values()))
    for seed in range(30):
        look = Appearance.random(np.random.default_rng(seed))
        tinted = np.array(look.tint(COLOURS[name], f"door:{seed}"))
        assert list(COLOURS)[int(np.argmin(np.linalg.norm(table - tinted, axis=1)))] == name


def test_retexturing_changes_rooms_but_only_when_asked():
    rooms = [room for seed in range(5) for room in generate_scene(seed).rooms]
    same, other = Appearance(seed=1), Appearance(seed=1, retexture=True)
    assert all(same.floor_texture(room) == room.floor_texture for room in rooms)
    assert any(other.floor_texture(room) != room.floor_texture for room in rooms)

# SPDX-License-Identifier: Apache-2.0
"""The shipped meshes: small, complete, well formed, and not needed."""

from pathlib import Path

import numpy as np

import nvila_ros.sim.assets as assets
from nvila_ros.sim.furniture import parts
from nvila_ros.sim.layout import SceneConfig, generate_scene
from nvila_ros.sim.scene import CATEGORIES, Furniture
from nvila_ros.sim.textures import TEXTURE_SIZE_PX, texture
from nvila_ros.sim.world import World

FOLDER = Path(assets.__file__).parent


def test_the_asset_file_is_small_and_credited():
    assert (FOLDER / "furniture.npz").stat().st_size < 15e6
    credits = (FOLDER / "ATTRIBUTION.md").read_text()
    assert "CC0" in credits
    assert all(name in credits for name in assets.furniture_meshes())


def test_meshes_fill_a_unit_box_and_have_a_coloured_part():
    for mesh in assets.furniture_meshes().values():
        assert mesh.category in CATEGORIES
        assert sum(part.is_main for part in mesh.parts) == 1
        vertices = np.concatenate([part.vertices for part in mesh.parts])
        assert np.abs(vertices[:, :2]).max() <= 0.55
        assert vertices[:, 2].min() >= -0.05 and vertices[:, 2].max() <= 1.05
        for part in mesh.parts:
            assert part.faces.max() < len(part.vertices)


def test_without_the_file_everything_is_drawn_from_primitives(monkeypatch):
    monkeypatch.setattr(assets, "_PATH", FOLDER / "missing.npz")
    assets.furniture_meshes.cache_clear()
    try:
        scene = generate_scene(2, SceneConfig(mesh_share=1.0))
        assert all(piece.mesh is None for piece in scene.furniture)
    finally:
        monkeypatch.undo()
        assets.furniture_meshes.cache_clear()


def test_an_unknown_mesh_falls_back_to_primitives():
    scene = generate_scene(2, SceneConfig(mesh_share=0.0))
    data = scene.to_json()
    data["furniture"][0]["mesh"] = "not in this version"
    plain, unknown = World(scene), World(type(scene).from_json(data))
    assert plain.model.ngeom == unknown.model.ngeom


def test_parts_stay_near_their_outline():
    for name, category in CATEGORIES.items():
        piece = Furniture(0, name, 'red', 0, 0, 0, category.depth_m, category.width_m,
                          category.height_m, 0, True)  # fmt: skip
        made = parts(piece)
        assert any(part.colour == "main" for part in made)
        for part in made:
            if part.shape == "box":
                reach = np.abs(part.centre_m[:2]) + part.half_size_m[:2]
                assert (reach <= np.array([category.depth_m, category.width_m]) / 2 + 0.06).all()


def test_textures_are_repeatable_pictures():
    for name in ("planks", "tile_dark", "carpet_gray", "bricks", "picture3", "window", "rug"):
        made = texture(name)
        assert made.shape == (TEXTURE_SIZE_PX, TEXTURE_SIZE_PX, 3) and made.dtype == np.uint8
        texture.cache_clear()
        assert (texture(name) == made).all()

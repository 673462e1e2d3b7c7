# SPDX-License-Identifier: Apache-2.0
"""Builds furniture: the parts of each piece, painted, and its solid outline."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.assets import FurnitureMesh, furniture_meshes
from nvila_ros.sim.furniture import parts
from nvila_ros.sim.paint import Painter
from nvila_ros.sim.parts import PROFILES, Part
from nvila_ros.sim.scene import COLOURS, Furniture, Scene
from nvila_ros.sim.turning import leaf, turned

import mujoco  # isort: skip

_FIXED_PAINT = {
    "dark": (0.10, 0.10, 0.11),
    "wood": (0.55, 0.40, 0.26),
    "metal": (0.70, 0.71, 0.73),
    "white": (0.93, 0.93, 0.92),
}
_REPEATS_PER_M = {"wood": 1.5, "fabric": 2.0}  # others are stretched over the face
_QUAT_FACE_X = [0.5, 0.5, 0.5, 0.5]  # local z becomes x, local x becomes y
_QUAT_AXIS_X = [math.sqrt(0.5), 0, math.sqrt(0.5), 0]


def build_furniture(painter: Painter, scene: Scene, appearance: Appearance) -> None:
    """One body per piece, named by its landmark key."""
    for piece in scene.furniture:
        body = painter.body(piece.key, piece.x_m, piece.y_m, piece.yaw_rad)
        paint = _paint(piece, appearance)
        mesh = furniture_meshes().get(piece.mesh or "")
        if mesh is not None:
            _build_mesh(painter, body, piece, mesh, paint)
        else:
            for part in parts(piece):
                _build_part(painter, body, part, paint)
        if piece.solid:
            painter.solid_box(body, 0, 0, 0, piece.depth_m / 2, piece.width_m / 2, piece.height_m)


def _paint(piece: Furniture, appearance: Appearance) -> dict[str, tuple[float, float, float]]:
    rgb = np.array(appearance.tint(COLOURS[piece.colour], piece.key))
    # Lighter on dark colours and darker on light ones, so that edges stay visible.
    accent = rgb * 0.80 + 0.07 if rgb.mean() > 0.12 else rgb + 0.06
    return {"main": tuple(rgb), "light": tuple(np.clip(accent, 0, 1)), **_FIXED_PAINT}


def _build_mesh(painter: Painter, body, piece: Furniture, mesh: FurnitureMesh, paint: dict) -> None:
    size = np.array([piece.depth_m, piece.width_m, piece.height_m * mesh.height_share])
    for index, part in enumerate(mesh.parts):
        key = f"{mesh.name}_{index}_{size[0]:.3f}_{size[1]:.3f}"
        name = painter.mesh(key, part.vertices * size, part.faces)
        material = painter.material(paint["main"] if part.is_main else part.rgb)
        painter.visible(body, mujoco.mjtGeom.mjGEOM_MESH, (0, 0, 0), None, material, mesh=name)


def _build_part(painter: Painter, body, part: Part, paint: dict) -> None:
    rgb = paint[part.colour] if isinstance(part.colour, str) else part.colour
    material = painter.material(rgb, part.texture, _REPEATS_PER_M.get(part.texture or ""))
    geom, half, centre = mujoco.mjtGeom, part.half_size_m, part.centre_m
    if part.shape == "box":
        painter.visible(body, geom.mjGEOM_BOX, centre, half, material)
    elif part.shape == "cylinder":
        painter.visible(body, geom.mjGEOM_CYLINDER, centre, half, material)
    elif part.shape == "disc":
        painter.visible(body, geom.mjGEOM_CYLINDER, centre, half, material, _QUAT_AXIS_X)
    elif part.shape == "ellipsoid":
        painter.visible(body, geom.mjGEOM_ELLIPSOID, centre, half, material)
    elif part.shape == "panel":
        painter.visible(
            body, geom.mjGEOM_BOX, centre, (half[1], half[2], half[0]), material, _QUAT_FACE_X
        )
    elif part.shape == "leaf":
        angle, reach, lift = half
        name = painter.mesh(f"leaf_{reach:.2f}_{lift:.2f}", *leaf(reach, lift))
        quat = (math.cos(angle / 2), 0, 0, math.sin(angle / 2))
        painter.visible(body, geom.mjGEOM_MESH, centre, None, material, quat, mesh=name)
    else:
        vertices, faces = turned(PROFILES[part.shape])
        name = painter.mesh(f"{part.shape}_{half[0]:.3f}_{half[2]:.3f}", vertices * half, faces)
        painter.visible(body, geom.mjGEOM_MESH, centre, None, material, mesh=name)

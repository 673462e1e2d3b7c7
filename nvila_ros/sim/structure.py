# SPDX-License-Identifier: Apache-2.0
"""Builds what stands still in every flat: floors, walls, ceilings, doors, windows, pictures."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.geometry import WallSide, door_leaf, doors_on, obstacles, wall_sides, wall_spans
from nvila_ros.sim.paint import GROUP_CEILING, Painter
from nvila_ros.sim.scene import (
    COLOURS,
    DOOR_HEIGHT_M,
    DOOR_JAMB_M,
    DOOR_WIDTH_M,
    WALL_HEIGHT_M,
    WALL_THICKNESS_M,
    Decoration,
    Door,
    Scene,
)

import mujoco  # isort: skip

_HALF_WALL_M = WALL_THICKNESS_M / 2
_TRIM_RGB = (0.95, 0.95, 0.94)  # skirting boards and window frames
_ARCHITRAVE_M = 0.12  # visible width of the coloured frame around a door hole
_FLOOR_REPEATS_PER_M = {"planks": 0.8, "tile": 0.9, "checker": 0.9, "carpet": 1.2}


def build_structure(painter: Painter, scene: Scene, appearance: Appearance) -> None:
    """Bodies 'floor', 'wall', 'ceiling', 'other' and one per door."""
    floor, wall, ceiling, other = (
        painter.body(name) for name in ("floor", "wall", "ceiling", "other")
    )
    ceiling_material = painter.material((0.93, 0.93, 0.91), specular=0.0, emission=0.25)
    lamp_material = painter.material((1.0, 1.0, 0.95), emission=0.8)
    for room in scene.rooms:
        x, y = room.centre
        half_x, half_y = (room.x_max_m - room.x_min_m) / 2, (room.y_max_m - room.y_min_m) / 2
        texture = appearance.floor_texture(room)
        rgb = appearance.tint((0.97, 0.97, 0.97), f"floor:{room.id}")
        material = painter.material(rgb, texture, _FLOOR_REPEATS_PER_M[texture.split("_")[0]], 0.05)
        painter.box(floor, (x, y, -0.02), (half_x, half_y, 0.02), material)
        painter.box(
            ceiling,
            (x, y, WALL_HEIGHT_M + 0.02),
            (half_x, half_y, 0.02),
            ceiling_material,
            GROUP_CEILING,
        )
        painter.visible(
            ceiling,
            mujoco.mjtGeom.mjGEOM_CYLINDER,
            (x, y, WALL_HEIGHT_M - 0.03),
            (0.18, 0.03, 0),
            lamp_material,
            group=GROUP_CEILING,
        )
        for side in wall_sides(room):
            _build_side(painter, wall, side, scene, appearance)
    for decoration in scene.decorations:
        _build_decoration(painter, other, decoration)
    bodies = {door.key: painter.body(door.key) for door in scene.doors}
    for door in scene.doors:
        _build_door(painter, bodies[door.key], door, appearance)
    for obstacle in obstacles(scene):
        if obstacle.kind != "furniture":
            painter.solid_box(
                bodies[obstacle.key] if obstacle.key else wall,
                obstacle.x_m,
                obstacle.y_m,
                obstacle.yaw_rad,
                obstacle.half_depth_m,
                obstacle.half_width_m,
                obstacle.height_m,
            )


def _build_side(
    painter: Painter, wall, side: WallSide, scene: Scene, appearance: Appearance
) -> None:
    """Half of a wall's thickness, in the room's colour, with a skirting board."""
    rgb = appearance.tint(side.room.wall_rgb, f"wall:{side.room.id}")
    material = painter.material(rgb, appearance.wall_texture(side.room), 0.8, 0.03)
    trim = painter.material(_TRIM_RGB, specular=0.05)
    for start, end in wall_spans(side, scene.doors):
        painter.plate(
            wall,
            side.axis,
            (start, end),
            side.position_m,
            (0, WALL_HEIGHT_M),
            _HALF_WALL_M,
            side.sign,
            material,
        )
        painter.plate(
            wall,
            side.axis,
            (start, end),
            side.position_m + side.sign * _HALF_WALL_M,
            (0, 0.08),
            0.012,
            side.sign,
            trim,
        )
    for along, door in doors_on(side, scene.doors):
        if door.style != "closed":
            hole = (along - DOOR_WIDTH_M / 2, along + DOOR_WIDTH_M / 2)
            painter.plate(
                wall,
                side.axis,
                hole,
                side.position_m,
                (DOOR_HEIGHT_M, WALL_HEIGHT_M),
                _HALF_WALL_M,
                side.sign,
                material,
            )


def _build_decoration(painter: Painter, body, decoration: Decoration) -> None:
    axis, side = decoration.axis, decoration.side
    along, across = (
        (decoration.x_m, decoration.y_m) if axis == "x" else (decoration.y_m, decoration.x_m)
    )

    def plate(
        half_width: float, z: tuple[float, float], depth: float, thickness: float, material: str
    ) -> None:
        painter.plate(
            body,
            axis,
            (along - half_width, along + half_width),
            across + side * (_HALF_WALL_M + depth),
            z,
            thickness,
            side,
            material,
        )

    if decoration.kind == "window":
        trim = painter.material(_TRIM_RGB, specular=0.05)
        plate(0.66, (0.94, 2.16), 0.0, 0.02, trim)
        plate(0.60, (1.00, 2.10), 0.012, 0.014, painter.material((1, 1, 1), "window", emission=0.4))
        plate(0.02, (1.00, 2.10), 0.02, 0.018, trim)
    else:
        plate(0.42, (1.14, 1.86), 0.0, 0.025, painter.material((0.16, 0.14, 0.13)))
        plate(
            0.37,
            (1.19, 1.81),
            0.02,
            0.012,
            painter.material((1, 1, 1), f"picture{decoration.variant}"),
        )


def _build_door(painter: Painter, body, door: Door, appearance: Appearance) -> None:
    """A bold frame through the wall, a sill, and the leaf: the colour shows from both rooms."""
    rgb = appearance.tint(COLOURS[door.colour], door.key)
    frame = painter.material(np.asarray(rgb) * 0.92)
    half_across = _HALF_WALL_M + 0.03
    inner, outer = DOOR_WIDTH_M / 2 - DOOR_JAMB_M, DOOR_WIDTH_M / 2 + _ARCHITRAVE_M
    top = DOOR_HEIGHT_M + _ARCHITRAVE_M

    def place(
        along: float,
        across: float,
        z: float,
        half_along: float,
        half_z: float,
        half_thickness: float,
        material: str,
    ) -> None:
        centre = (*(np.array([door.x_m, door.y_m]) + along * door.along + across * door.across), z)
        half = (
            (half_along, half_thickness, half_z)
            if door.axis == "x"
            else (half_thickness, half_along, half_z)
        )
        painter.box(body, centre, half, material)

    for sign in (-1, 1):
        place(
            sign * (inner + outer) / 2, 0, top / 2, (outer - inner) / 2, top / 2, half_across, frame
        )
    place(
        0,
        0,
        (DOOR_HEIGHT_M - DOOR_JAMB_M + top) / 2,
        inner,
        (top - DOOR_HEIGHT_M + DOOR_JAMB_M) / 2,
        half_across - 0.002,
        frame,
    )
    if door.style != "closed":
        place(0, 0, 0.004, inner, 0.004, half_across - 0.004, frame)
    _build_leaf(painter, body, door, rgb)


def _build_leaf(painter: Painter, body, door: Door, rgb: tuple[float, float, float]) -> None:
    leaf = door_leaf(door)
    if leaf is None:
        return
    panel = painter.material(rgb, "wood", 1.0)
    inset = painter.material(np.asarray(rgb) * 0.84)
    brass = painter.material((0.80, 0.75, 0.50), specular=0.6)
    # Upright slab whose local z is its normal, so that the wood texture lies on the faces.
    yaw_quat = np.array([math.cos(leaf.yaw_rad / 2), 0, 0, math.sin(leaf.yaw_rad / 2)])
    quat = np.empty(4)
    mujoco.mju_mulQuat(quat, yaw_quat, np.array([math.sqrt(0.5), math.sqrt(0.5), 0, 0]))
    box, sphere = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE
    # A closed door fills the hole; an open leaf clears the floor and stays below the frame.
    half_z = (DOOR_HEIGHT_M - (0.01 if door.style == "closed" else 0.05)) / 2
    centre = np.array([leaf.x_m, leaf.y_m])
    painter.visible(
        body,
        box,
        (*centre, half_z + 0.01),
        (leaf.half_depth_m, half_z, leaf.half_width_m),
        panel,
        quat,
    )
    for z, half_height in ((0.55, 0.36), (1.45, 0.38)):
        painter.visible(
            body,
            box,
            (*centre, z),
            (leaf.half_depth_m - 0.14, half_height, leaf.half_width_m + 0.005),
            inset,
            quat,
        )
    direction = np.array([math.cos(leaf.yaw_rad), math.sin(leaf.yaw_rad)])
    normal = np.array([-direction[1], direction[0]])
    for sign in (-1, 1):
        knob = (
            centre
            + direction * (leaf.half_depth_m - 0.08)
            + sign * normal * (leaf.half_width_m + 0.03)
        )
        painter.visible(body, sphere, (*knob, 1.0), (0.035, 0, 0), brass)

# SPDX-License-Identifier: Apache-2.0
"""What is solid in a scene, as rectangles: one source for physics, lidar and the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvila_ros.sim.scene import (
    DOOR_HEIGHT_M,
    DOOR_JAMB_M,
    DOOR_LEAF_LENGTH_M,
    DOOR_LEAF_THICKNESS_M,
    DOOR_OPEN_ANGLE_RAD,
    DOOR_WIDTH_M,
    WALL_HEIGHT_M,
    WALL_THICKNESS_M,
    Door,
    Furniture,
    Room,
    Scene,
    rectangle_corners,
)


@dataclass(frozen=True)
class Obstacle:
    """A solid box on the floor; depth runs along yaw."""

    kind: str  # 'wall', 'door' or 'furniture'
    key: str | None  # landmark key, None for walls
    x_m: float
    y_m: float
    yaw_rad: float
    half_depth_m: float
    half_width_m: float
    height_m: float

    def corners(self, margin_m: float = 0.0) -> np.ndarray:
        """(4, 2) counter-clockwise outline, grown by a margin."""
        return rectangle_corners(
            self.x_m,
            self.y_m,
            self.yaw_rad,
            self.half_depth_m + margin_m,
            self.half_width_m + margin_m,
        )


@dataclass(frozen=True)
class WallSide:
    """One of the four inner sides of a room."""

    room: Room
    axis: str  # the wall runs along this axis
    position_m: float  # of the wall's centre line on the other axis
    start_m: float  # extent along the axis
    end_m: float
    sign: int  # +1 or -1: direction from the wall into the room, on the other axis

    def point(self, along_m: float, across_m: float = 0.0) -> tuple[float, float]:
        """(x, y) of a point given along the wall and across it (positive towards +axis)."""
        other = self.position_m + across_m
        return (along_m, other) if self.axis == "x" else (other, along_m)


def wall_sides(room: Room) -> tuple[WallSide, ...]:
    """The four sides: y min, y max, x min, x max."""
    x_extent, y_extent = (room.x_min_m, room.x_max_m), (room.y_min_m, room.y_max_m)
    return (
        WallSide(room, "x", room.y_min_m, *x_extent, 1),
        WallSide(room, "x", room.y_max_m, *x_extent, -1),
        WallSide(room, "y", room.x_min_m, *y_extent, 1),
        WallSide(room, "y", room.x_max_m, *y_extent, -1),
    )


def doors_on(side: WallSide, doors: tuple[Door, ...] | list[Door]) -> list[tuple[float, Door]]:
    """Doors in this side with their position along it, in order."""
    found = []
    for door in doors:
        along, other = (door.x_m, door.y_m) if door.axis == "x" else (door.y_m, door.x_m)
        if (
            door.axis == side.axis
            and abs(other - side.position_m) < 1e-6
            and side.start_m < along < side.end_m
        ):
            found.append((along, door))
    return sorted(found, key=lambda pair: pair[0])


def wall_spans(side: WallSide, doors: tuple[Door, ...] | list[Door]) -> list[tuple[float, float]]:
    """Full-height pieces (start, end) of a wall side: what the door holes leave."""
    spans, start = [], side.start_m
    for along, door in doors_on(side, doors):
        if door.style != "closed":
            spans.append((start, along - DOOR_WIDTH_M / 2))
            start = along + DOOR_WIDTH_M / 2
    spans.append((start, side.end_m))
    return [(a, b) for a, b in spans if b - a > 1e-6]


def door_leaf(door: Door) -> Obstacle | None:
    """The open leaf, or the panel of a closed door; None for a bare frame."""
    if door.style == "frame":
        return None
    if door.style == "closed":
        yaw = 0.0 if door.axis == "x" else math.pi / 2
        return Obstacle(
            "door",
            door.key,
            door.x_m,
            door.y_m,
            yaw,
            DOOR_WIDTH_M / 2 - DOOR_JAMB_M,
            WALL_THICKNESS_M / 2 + 0.025,
            DOOR_HEIGHT_M,
        )
    hinge = (
        np.array([door.x_m, door.y_m])
        + door.along * door.hinge_side * (DOOR_WIDTH_M / 2 + 0.02)
        + door.across * door.swing_side * (WALL_THICKNESS_M / 2 + 0.04)
    )
    direction = -door.along * door.hinge_side * math.cos(
        DOOR_OPEN_ANGLE_RAD
    ) + door.across * door.swing_side * math.sin(DOOR_OPEN_ANGLE_RAD)
    centre = hinge + direction * DOOR_LEAF_LENGTH_M / 2
    return Obstacle(
        "door",
        door.key,
        float(centre[0]),
        float(centre[1]),
        math.atan2(direction[1], direction[0]),
        DOOR_LEAF_LENGTH_M / 2,
        DOOR_LEAF_THICKNESS_M / 2,
        DOOR_HEIGHT_M,
    )


def door_jambs(door: Door) -> tuple[Obstacle, ...]:
    """The two linings inside the hole of a door that can be walked through."""
    if door.style == "closed":
        return ()
    yaw = 0.0 if door.axis == "x" else math.pi / 2
    centres = [
        np.array([door.x_m, door.y_m]) + sign * door.along * (DOOR_WIDTH_M - DOOR_JAMB_M) / 2
        for sign in (-1, 1)
    ]
    return tuple(
        Obstacle(
            "door",
            door.key,
            float(x),
            float(y),
            yaw,
            DOOR_JAMB_M / 2,
            WALL_THICKNESS_M / 2 + 0.03,
            DOOR_HEIGHT_M,
        )
        for x, y in centres
    )


def obstacles(scene: Scene) -> list[Obstacle]:
    """Every solid rectangle: walls, door jambs and leaves, solid furniture."""
    solid: dict[tuple, Obstacle] = {}
    for room in scene.rooms:
        for side in wall_sides(room):
            for start, end in wall_spans(side, scene.doors):
                x, y = side.point((start + end) / 2)
                wall = Obstacle(
                    "wall",
                    None,
                    x,
                    y,
                    0.0 if side.axis == "x" else math.pi / 2,
                    (end - start) / 2,
                    WALL_THICKNESS_M / 2,
                    WALL_HEIGHT_M,
                )
                solid[(side.axis, side.position_m, start, end)] = wall
    found = list(solid.values())
    for door in scene.doors:
        leaf = door_leaf(door)
        found += [*door_jambs(door), *([leaf] if leaf else [])]
    found += [furniture_obstacle(piece) for piece in scene.furniture if piece.solid]
    return found


def furniture_obstacle(piece: Furniture) -> Obstacle:
    """The outline of a piece, whatever it is drawn with."""
    return Obstacle(
        "furniture",
        piece.key,
        piece.x_m,
        piece.y_m,
        piece.yaw_rad,
        piece.depth_m / 2,
        piece.width_m / 2,
        piece.height_m,
    )


def rectangles_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, 4, 2), (B, 4, 2) corners -> (A, B) bool, by the separating-axis test."""
    half_axes = [
        ((corners[:, 0] - corners[:, 1]) / 2, (corners[:, 0] - corners[:, 3]) / 2)
        for corners in (first, second)
    ]
    offset = first.mean(1)[:, None] - second.mean(1)[None]  # (A, B, 2)
    cross = [[abs(own @ other.T) for other in half_axes[1]] for own in half_axes[0]]  # (A, B) each
    overlap = np.ones(offset.shape[:2], bool)
    for index, axis in enumerate(half_axes[0]):
        distance = abs(offset[..., 0] * axis[:, None, 0] + offset[..., 1] * axis[:, None, 1])
        reach = (axis**2).sum(1)[:, None] + cross[index][0] + cross[index][1]
        overlap &= distance < reach
    for index, axis in enumerate(half_axes[1]):
        distance = abs(offset[..., 0] * axis[None, :, 0] + offset[..., 1] * axis[None, :, 1])
        reach = (axis**2).sum(1)[None] + cross[0][index] + cross[1][index]
        overlap &= distance < reach
    return overlap


def blocked_cells(
    solid: list[Obstacle], x_m: np.ndarray, y_m: np.ndarray, margin_m: float
) -> np.ndarray:
    """(len(x), len(y)) bool: cell centres closer than a margin to an obstacle; x, y ascend."""
    blocked = np.zeros((len(x_m), len(y_m)), bool)
    for obstacle in solid:
        low = obstacle.corners(margin_m).min(0)
        high = obstacle.corners(margin_m).max(0)
        i0, i1 = np.searchsorted(x_m, [low[0], high[0]])
        j0, j1 = np.searchsorted(y_m, [low[1], high[1]])
        if i0 >= i1 or j0 >= j1:
            continue
        dx, dy = x_m[i0:i1, None] - obstacle.x_m, y_m[None, j0:j1] - obstacle.y_m
        cos, sin = math.cos(obstacle.yaw_rad), math.sin(obstacle.yaw_rad)
        outside_depth = np.maximum(abs(dx * cos + dy * sin) - obstacle.half_depth_m, 0)
        outside_width = np.maximum(abs(dy * cos - dx * sin) - obstacle.half_width_m, 0)
        blocked[i0:i1, j0:j1] |= outside_depth**2 + outside_width**2 <= margin_m**2
    return blocked


def rectangle_table(solid: list[Obstacle]) -> np.ndarray:
    """(N, 6): x, y, cos(yaw), sin(yaw), half depth, half width."""
    return np.array(
        [
            (o.x_m, o.y_m, math.cos(o.yaw_rad), math.sin(o.yaw_rad), o.half_depth_m, o.half_width_m)
            for o in solid
        ]
    )


def distances_m(points: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """(P, 2) points, (N, 6) rectangles -> (P, N) distances, 0 inside."""
    x, y, cos, sin, half_depth, half_width = rectangles.T
    dx, dy = points[:, :1] - x, points[:, 1:] - y
    outside_depth = np.maximum(abs(dx * cos + dy * sin) - half_depth, 0)
    outside_width = np.maximum(abs(dy * cos - dx * sin) - half_width, 0)
    return np.hypot(outside_depth, outside_width)


def cast_rays(origin: np.ndarray, directions: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    """(2,) origin, (R, 2) unit directions, (N, 6) rectangles -> (R,) distances, inf for no hit."""
    x, y, cos, sin, half_depth, half_width = rectangles.T
    dx, dy = origin[0] - x, origin[1] - y
    start = np.stack([dx * cos + dy * sin, dy * cos - dx * sin])  # (2, N) in the rectangles' frames
    slope = np.stack(
        [
            directions[:, :1] * cos + directions[:, 1:] * sin,
            directions[:, 1:] * cos - directions[:, :1] * sin,
        ]
    )  # (2, R, N)
    half = np.stack([half_depth, half_width])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (-half - start[:, None]) / slope
        second = (half - start[:, None]) / slope
    # A ray parallel to a slab gives nan or infinities; nan counts as inside the slab.
    enter = np.nanmax(np.minimum(first, second), axis=0)
    leave = np.nanmin(np.maximum(first, second), axis=0)
    hit = (leave >= enter) & (leave >= 0)
    return np.where(hit, np.maximum(enter, 0), np.inf).min(1)

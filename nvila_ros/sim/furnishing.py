# SPDX-License-Identifier: Apache-2.0
"""Furniture finds its place: by room kind, clear of doors, the flat still passable."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nvila_ros.sim.assets import mesh_names
from nvila_ros.sim.geometry import door_leaf, rectangles_overlap
from nvila_ros.sim.passage import PassageCheck
from nvila_ros.sim.scene import (
    CATEGORIES,
    COLOURS,
    WALL_THICKNESS_M,
    Door,
    Furniture,
    Room,
    rectangle_corners,
)

# In order of importance: a room is filled from the front of its list.
ROOM_FURNITURE: dict[str, tuple[str, ...]] = {
    "living room": (
        "sofa",
        "tv stand",
        "coffee table",
        "armchair",
        "bookshelf",
        "rug",
        "floor lamp",
        "plant",
        "stool",
    ),
    "bedroom": ("bed", "wardrobe", "nightstand", "desk", "rug", "floor lamp", "plant", "chair"),
    "kitchen": (
        "fridge",
        "stove",
        "kitchen counter",
        "dining table",
        "chair",
        "chair",
        "trash bin",
        "stool",
    ),
    "bathroom": ("bathtub", "toilet", "sink", "washing machine", "trash bin", "stool"),
    "office": ("desk", "chair", "bookshelf", "armchair", "plant", "box", "trash bin"),
    "dining room": ("dining table", "chair", "chair", "plant", "bookshelf", "floor lamp", "stool"),
}
EXTRA_FURNITURE = (
    "box",
    "plant",
    "stool",
    "trash bin",
    "floor lamp",
    "chair",
    "armchair",
    "nightstand",
)

_NUM_CANDIDATES = 48  # places tried at once for each piece
_NUM_ATTEMPTS = 4  # whole layouts tried until one holds enough
_WALL_GAP_M = WALL_THICKNESS_M / 2 + 0.03
_FRONT_DEPTH_M = 1.05  # kept free before a front face: a goal lies 0.7 m away with 0.3 m around it
_FRONT_HALF_WIDTH_M = 0.32


def furnish(
    seed: int,
    rooms: tuple[Room, ...],
    doors: tuple[Door, ...],
    num_wanted: int,
    num_required: int,
    mesh_share: float,
) -> tuple[Furniture, ...]:
    """Furniture for every room, reachable by the robot; at least `num_required` nearly always."""
    best: list[Furniture] = []
    for attempt in range(_NUM_ATTEMPTS):
        rng = np.random.default_rng([seed, 2, attempt])
        furniture = _Furnisher(rng, rooms, doors).fill(num_wanted)
        best = max(best, furniture, key=len)
        if len(furniture) >= num_required:
            break
    return tuple(_choose_meshes(seed, best, mesh_share))


class _Furnisher:
    """Places one piece after another and remembers what is taken."""

    def __init__(
        self, rng: np.random.Generator, rooms: tuple[Room, ...], doors: tuple[Door, ...]
    ) -> None:
        self._rng = rng
        self._rooms = rooms
        self._furniture: list[Furniture] = []
        self._passage = PassageCheck(rooms, doors)
        self._taken: dict[int, list[np.ndarray]] = {room.id: [] for room in rooms}
        self._fronts: dict[int, list[np.ndarray]] = {room.id: [] for room in rooms}
        self._used: set[tuple[str, str]] = set()
        zones = []
        for door in doors:
            half = (0.75, 1.10) if door.axis == "x" else (1.10, 0.75)
            zones.append(rectangle_corners(door.x_m, door.y_m, 0.0, *half))
            leaf = door_leaf(door)
            if leaf is not None:
                zones.append(leaf.corners(0.08))
        self._door_zones = zones

    def fill(self, num_wanted: int) -> list[Furniture]:
        """Every room by turns through its list, then extras in random rooms."""
        longest = max(len(ROOM_FURNITURE[room.kind]) for room in self._rooms)
        for rank in range(longest):
            for room in self._rooms:
                wanted = ROOM_FURNITURE[room.kind]
                if rank < len(wanted) and len(self._furniture) < num_wanted:
                    self._place(room, wanted[rank])
        for _ in range(2 * num_wanted):
            if len(self._furniture) >= num_wanted:
                break
            room = self._rooms[int(self._rng.integers(len(self._rooms)))]
            self._place(room, str(self._rng.choice(EXTRA_FURNITURE)))
        return self._furniture

    def _place(self, room: Room, name: str) -> None:
        rng, category = self._rng, CATEGORIES[name]
        width = category.width_m
        if name in ("bookshelf", "tv stand", "kitchen counter"):
            width *= rng.uniform(0.85, 1.15)
        width = round(width, 3)
        poses = _candidates(rng, room, category.placement, category.depth_m, width, name)
        if len(poses) == 0:
            return
        poses[:, :2] = poses[:, :2].round(3)
        poses[:, 2] = poses[:, 2].round(5)
        good = self._fits(room, poses, category.depth_m, width, category.solid, category.placement)
        colour = self._colour(name)
        if not good.any():
            return
        x, y, yaw = (float(value) for value in poses[int(np.argmax(good))])
        piece = Furniture(
            len(self._furniture),
            name,
            colour,
            x,
            y,
            yaw,
            category.depth_m,
            width,
            category.height_m,
            room.id,
            category.solid,
        )
        if piece.solid and not self._passage.add(piece):
            return
        self._furniture.append(piece)
        self._used.add((colour, name))
        if piece.solid:
            margin = 0.30 if category.placement == "centre" else 0.06
            self._taken[room.id].append(piece.corners(margin))
            if category.placement != "centre":
                front = _front_zones(np.array([[x, y, yaw]]), category.depth_m)[0]
                self._fronts[room.id].append(front)

    def _fits(
        self,
        room: Room,
        poses: np.ndarray,
        depth_m: float,
        width_m: float,
        solid: bool,
        placement: str,
    ) -> np.ndarray:
        outlines = _outlines(poses, depth_m / 2 + 0.02, width_m / 2 + 0.02)
        low, high = outlines.min(1), outlines.max(1)
        inset = WALL_THICKNESS_M / 2
        good = (low > [room.x_min_m + inset, room.y_min_m + inset]).all(1) & (
            high < [room.x_max_m - inset, room.y_max_m - inset]
        ).all(1)
        if not solid:
            return good
        zones = self._door_zones + self._taken[room.id] + self._fronts[room.id]
        if zones:
            good &= ~rectangles_overlap(outlines, np.array(zones)).any(1)
        if placement != "centre" and self._taken[room.id]:
            fronts = _front_zones(poses, depth_m)
            good &= ~rectangles_overlap(fronts, np.array(self._taken[room.id])).any(1)
        return good

    def _colour(self, name: str) -> str:
        """Random, but not a second piece of the same colour and category while colours last."""
        excluded = ("green", "black") if name == "plant" else ()
        free = [
            colour
            for colour in COLOURS
            if colour not in excluded and (colour, name) not in self._used
        ]
        return str(self._rng.choice(free or list(COLOURS)))


def _candidates(
    rng: np.random.Generator, room: Room, placement: str, depth_m: float, width_m: float, name: str
) -> np.ndarray:
    """(N, 3) poses to try for a piece, in random order."""
    num = _NUM_CANDIDATES
    x0, y0, x1, y1 = room.x_min_m, room.y_min_m, room.x_max_m, room.y_max_m
    gap = _WALL_GAP_M + depth_m / 2
    if placement == "wall":
        side, share = rng.integers(4, size=num), rng.random(num)
        inset = width_m / 2 + _WALL_GAP_M
        x_along = x0 + inset + share * (x1 - x0 - 2 * inset)
        y_along = y0 + inset + share * (y1 - y0 - 2 * inset)
        x = np.choose(side, [x_along, np.full(num, x1 - gap), x_along, np.full(num, x0 + gap)])
        y = np.choose(side, [np.full(num, y0 + gap), y_along, np.full(num, y1 - gap), y_along])
        yaw = np.array([math.pi / 2, math.pi, -math.pi / 2, 0.0])[side]
        return np.stack([x, y, yaw], 1)
    if placement == "corner":
        poses = []
        for right, top in rng.permutation([(0, 0), (0, 1), (1, 0), (1, 1)]):
            corner_x = x1 - gap - 0.05 if right else x0 + gap + 0.05
            corner_y = y1 - gap - 0.05 if top else y0 + gap + 0.05
            along_x = rng.random() < 0.5
            facing_rad = math.pi * right if along_x else math.pi / 2 * (1 - 2 * top)
            poses.append((corner_x, corner_y, facing_rad))
        along_walls = _candidates(rng, room, "wall", depth_m, width_m, name)
        return np.concatenate([poses, along_walls])
    inset = 0.9
    x = rng.uniform(x0 + inset, max(x1 - inset, x0 + inset + 0.01), num)
    y = rng.uniform(y0 + inset, max(y1 - inset, y0 + inset + 0.01), num)
    yaw = rng.integers(4, size=num) * math.pi / 2
    if name in ("chair", "stool"):
        yaw = yaw + rng.uniform(-0.25, 0.25, num)
    return np.stack([x, y, yaw], 1)


def _outlines(poses: np.ndarray, half_depth_m: float, half_width_m: float) -> np.ndarray:
    """(N, 3) poses -> (N, 4, 2) corners."""
    cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    forward = np.stack([cos, sin], 1) * half_depth_m
    left = np.stack([-sin, cos], 1) * half_width_m
    offsets = np.stack([forward + left, left - forward, -forward - left, forward - left], 1)
    return poses[:, None, :2] + offsets


def _front_zones(poses: np.ndarray, depth_m: float) -> np.ndarray:
    """(N, 3) poses -> (N, 4, 2) corners of the floor that must stay free before the front."""
    shifted = poses.copy()
    reach = (depth_m + _FRONT_DEPTH_M) / 2
    shifted[:, 0] += np.cos(poses[:, 2]) * reach
    shifted[:, 1] += np.sin(poses[:, 2]) * reach
    return _outlines(shifted, _FRONT_DEPTH_M / 2, _FRONT_HALF_WIDTH_M)


def _choose_meshes(seed: int, furniture: list[Furniture], mesh_share: float) -> list[Furniture]:
    """Give a share of the pieces a mesh, from an own random stream: the layout stays the same."""
    rng = np.random.default_rng([seed, 3])
    chosen = []
    for piece in furniture:
        share, pick = rng.random(), rng.random()
        names = mesh_names(piece.category) if share < mesh_share else []
        mesh = names[int(pick * len(names))] if names else None
        chosen.append(dataclasses.replace(piece, mesh=mesh))
    return chosen

# SPDX-License-Identifier: Apache-2.0
"""The apartment as pure data, from which everything else in this room is built."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvila_ros.errors import SceneError

GENERATOR_VERSION = 1

WALL_THICKNESS_M = 0.12  # inner and outer walls, centred on the room borders
WALL_HEIGHT_M = 2.5
DOOR_WIDTH_M = 1.0  # the hole in the wall; the clear opening is two jambs less
DOOR_HEIGHT_M = 2.05
DOOR_JAMB_M = 0.03  # thickness of the coloured lining inside the hole
DOOR_LEAF_LENGTH_M = 0.90
DOOR_LEAF_THICKNESS_M = 0.04
DOOR_OPEN_ANGLE_RAD = math.radians(100)  # a little past the perpendicular: the hole stays clear

# Names a person would use, far apart in hue or lightness so that light cannot swap two of them.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.07, 0.08),
    "orange": (1.00, 0.46, 0.02),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.10, 0.56, 0.15),
    "cyan": (0.10, 0.78, 0.82),
    "blue": (0.08, 0.22, 0.82),
    "purple": (0.48, 0.14, 0.70),
    "pink": (1.00, 0.50, 0.72),
    "brown": (0.38, 0.20, 0.08),
    "white": (0.96, 0.96, 0.95),
    "gray": (0.50, 0.51, 0.53),
    "black": (0.06, 0.06, 0.07),
}
# White and gray would be lost between the pale walls.
DOOR_COLOURS = tuple(name for name in COLOURS if name not in ("white", "gray"))


@dataclass(frozen=True)
class Category:
    """Nominal size of a kind of furniture and where it stands; depth is along its front."""

    depth_m: float
    width_m: float
    height_m: float
    placement: str  # 'wall', 'corner' or 'centre'
    solid: bool = True


CATEGORIES: dict[str, Category] = {
    "sofa": Category(0.85, 1.90, 0.80, "wall"),
    "armchair": Category(0.80, 0.82, 0.85, "wall"),
    "coffee table": Category(0.55, 1.00, 0.42, "centre"),
    "tv stand": Category(0.42, 1.40, 1.15, "wall"),
    "bookshelf": Category(0.32, 0.95, 1.85, "wall"),
    "floor lamp": Category(0.40, 0.40, 1.60, "corner"),
    "plant": Category(0.50, 0.50, 1.25, "corner"),
    "bed": Category(2.00, 1.50, 0.95, "wall"),
    "nightstand": Category(0.42, 0.48, 0.82, "wall"),
    "wardrobe": Category(0.58, 1.20, 2.00, "wall"),
    "desk": Category(0.62, 1.30, 1.15, "wall"),
    "chair": Category(0.48, 0.46, 0.92, "centre"),
    "fridge": Category(0.68, 0.70, 1.80, "wall"),
    "stove": Category(0.60, 0.64, 0.95, "wall"),
    "kitchen counter": Category(0.60, 1.60, 0.92, "wall"),
    "dining table": Category(0.85, 1.40, 0.75, "centre"),
    "toilet": Category(0.68, 0.44, 0.80, "wall"),
    "sink": Category(0.48, 0.62, 1.65, "wall"),
    "bathtub": Category(0.75, 1.60, 0.58, "wall"),
    "washing machine": Category(0.60, 0.62, 0.88, "wall"),
    "trash bin": Category(0.34, 0.34, 0.55, "corner"),
    "box": Category(0.48, 0.48, 0.42, "corner"),
    "rug": Category(1.50, 2.10, 0.02, "centre", solid=False),
    "stool": Category(0.38, 0.38, 0.52, "centre"),
}

ROOM_KINDS = ("living room", "bedroom", "kitchen", "bathroom", "office", "dining room")


@dataclass(frozen=True)
class Room:
    """An axis-aligned room; the borders are the centre lines of its walls."""

    id: int
    kind: str
    x_min_m: float
    y_min_m: float
    x_max_m: float
    y_max_m: float
    wall_colour: str
    wall_rgb: tuple[float, float, float]
    wall_texture: str
    floor_texture: str

    def contains(self, x_m: float, y_m: float) -> bool:
        """Whether the point lies inside the borders."""
        return self.x_min_m <= x_m <= self.x_max_m and self.y_min_m <= y_m <= self.y_max_m

    @property
    def centre(self) -> np.ndarray:
        """(2,) the middle of the room."""
        return np.array([(self.x_min_m + self.x_max_m) / 2, (self.y_min_m + self.y_max_m) / 2])


@dataclass(frozen=True)
class Door:
    """A doorway between two rooms, or a closed outer door that is only a landmark."""

    id: int
    x_m: float
    y_m: float
    axis: str  # 'x' or 'y': the wall runs along this axis
    room_ids: tuple[int, ...]  # two rooms, or one for a closed outer door
    colour: str
    style: str  # 'leaf' (open leaf), 'frame' (no leaf) or 'closed'
    swing_side: int  # +1 or -1: the side across the wall into which the leaf is open
    hinge_side: int  # +1 or -1: the end along the wall that carries the hinge

    @property
    def key(self) -> str:
        """The landmark key."""
        return f"door:{self.id}"

    @property
    def along(self) -> np.ndarray:
        """(2,) unit vector along the wall."""
        return np.array([1.0, 0.0]) if self.axis == "x" else np.array([0.0, 1.0])

    @property
    def across(self) -> np.ndarray:
        """(2,) unit vector through the doorway, towards +y (axis 'x') or +x (axis 'y')."""
        return np.array([0.0, 1.0]) if self.axis == "x" else np.array([1.0, 0.0])


@dataclass(frozen=True)
class Furniture:
    """A piece that stands on the floor; yaw is the direction in which its front faces."""

    id: int
    category: str
    colour: str
    x_m: float
    y_m: float
    yaw_rad: float
    depth_m: float
    width_m: float
    height_m: float
    room_id: int
    solid: bool
    mesh: str | None = None  # name in the asset file; None draws the piece from primitives

    @property
    def key(self) -> str:
        """The landmark key."""
        return f"furniture:{self.id}"

    @property
    def front(self) -> np.ndarray:
        """(2,) unit vector in which the front faces."""
        return np.array([math.cos(self.yaw_rad), math.sin(self.yaw_rad)])

    def corners(self, margin_m: float = 0.0) -> np.ndarray:
        """(4, 2) counter-clockwise outline on the floor, grown by a margin."""
        return rectangle_corners(
            self.x_m,
            self.y_m,
            self.yaw_rad,
            self.depth_m / 2 + margin_m,
            self.width_m / 2 + margin_m,
        )


@dataclass(frozen=True)
class Decoration:
    """A window or a picture, flat on one side of a wall."""

    kind: str  # 'window' or 'picture'
    x_m: float
    y_m: float
    axis: str  # as in Door
    side: int  # +1 or -1: the side across the wall on which it hangs
    room_id: int
    variant: int  # which picture


@dataclass(frozen=True)
class Scene:
    """One furnished apartment; width is its extent in x and height its extent in y."""

    seed: int
    width_m: float
    height_m: float
    rooms: tuple[Room, ...]
    doors: tuple[Door, ...]
    furniture: tuple[Furniture, ...]
    decorations: tuple[Decoration, ...] = ()
    generator_version: int = GENERATOR_VERSION

    def room_at(self, x_m: float, y_m: float) -> Room | None:
        """The room that contains a point."""
        return next((room for room in self.rooms if room.contains(x_m, y_m)), None)

    @property
    def digest(self) -> str:
        """Hex sha256 of the canonical JSON: equal scenes have equal digests on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """The inverse of `to_json`; raises SceneError on anything malformed."""
        parts = {"rooms": Room, "doors": Door, "furniture": Furniture, "decorations": Decoration}
        try:
            fields = dict(data)
            for name, part in parts.items():
                fields[name] = tuple(part(**_with_tuples(item)) for item in fields[name])
            scene = cls(**fields)
        except (TypeError, KeyError, ValueError) as error:
            raise SceneError(f"malformed scene ({error}); write it with Scene.to_json") from error
        _check_words(scene)
        return scene


def rectangle_corners(
    x_m: float, y_m: float, yaw_rad: float, half_depth_m: float, half_width_m: float
) -> np.ndarray:
    """(4, 2) counter-clockwise corners of a rotated rectangle; depth runs along yaw."""
    forward = np.array([math.cos(yaw_rad), math.sin(yaw_rad)]) * half_depth_m
    left = np.array([-math.sin(yaw_rad), math.cos(yaw_rad)]) * half_width_m
    return np.array([x_m, y_m]) + np.stack(
        [forward + left, left - forward, -forward - left, forward - left]
    )


def _with_tuples(item: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}


def _check_words(scene: Scene) -> None:
    for piece in scene.furniture:
        if piece.category not in CATEGORIES or piece.colour not in COLOURS:
            raise SceneError(f"unknown {piece.colour!r} {piece.category!r} in {piece.key}")
    for door in scene.doors:
        if door.colour not in COLOURS or door.axis not in ("x", "y"):
            raise SceneError(f"unknown colour {door.colour!r} or axis {door.axis!r} in {door.key}")

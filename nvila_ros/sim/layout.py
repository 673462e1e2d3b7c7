# SPDX-License-Identifier: Apache-2.0
"""A seed becomes a scene: rooms by binary splits, doors by a spanning tree, then furniture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import SceneError
from nvila_ros.sim.furnishing import furnish
from nvila_ros.sim.geometry import WallSide, doors_on, wall_sides
from nvila_ros.sim.passage import PassageCheck
from nvila_ros.sim.scene import DOOR_COLOURS, Decoration, Door, Room, Scene

# Pale and weakly saturated, so that no wall competes with a door or a piece of furniture.
WALL_COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (0.93, 0.92, 0.89),
    "light blue": (0.75, 0.82, 0.89),
    "light green": (0.78, 0.86, 0.76),
    "beige": (0.88, 0.82, 0.70),
    "light pink": (0.91, 0.82, 0.81),
    "light gray": (0.80, 0.81, 0.83),
    "light yellow": (0.93, 0.90, 0.76),
    "lavender": (0.83, 0.80, 0.89),
}
WALL_TEXTURES = ("plaster", "plaster", "stripes", "bricks")
FLOOR_TEXTURES = (
    "planks",
    "planks_dark",
    "tile",
    "tile_dark",
    "carpet_gray",
    "carpet_beige",
    "checker",
)
NUM_PICTURES = 8

_MIN_SHARED_WALL_M = 1.7
_NUM_SPLITS = 100  # a split without a spanning tree of doors is drawn again
_DOOR_TO_CORNER_M = 0.80
_DECORATION_TO_DOOR_M = 1.30


@dataclass(frozen=True)
class SceneConfig:
    """The ranges a scene is drawn from."""

    min_rooms: int = 3
    max_rooms: int = 5
    min_furniture: int = 20
    max_furniture: int = 30
    width_range_m: tuple[float, float] = (8.5, 12.5)
    height_range_m: tuple[float, float] = (7.0, 9.5)
    loop_probability: float = 0.3  # a door that is not needed to connect the rooms
    bare_frame_probability: float = 0.35
    outer_door_probability: float = 0.5  # per room, a closed door in an outer wall
    mesh_share: float = 0.4  # pieces drawn from a mesh where the asset file has one


def generate_scene(seed: int, config: SceneConfig = SceneConfig()) -> Scene:
    """A furnished, passable apartment; the same seed and config always give the same scene."""
    rng = np.random.default_rng([seed, 1])
    width_m = _round(rng.uniform(*config.width_range_m))
    height_m = _round(rng.uniform(*config.height_range_m))
    num_rooms = int(rng.integers(config.min_rooms, config.max_rooms + 1))
    for _ in range(_NUM_SPLITS):
        rooms = _rooms(rng, _split(rng, width_m, height_m, num_rooms))
        doors = _doors(rng, rooms, width_m, height_m, config)
        if doors is not None and PassageCheck(rooms, doors).passable:
            break
    else:
        raise SceneError(f"seed {seed}: no way to connect {num_rooms} rooms; widen the ranges")
    num_furniture = int(rng.integers(config.min_furniture, config.max_furniture + 1))
    furniture = furnish(seed, rooms, doors, num_furniture, config.min_furniture, config.mesh_share)
    decorations = _decorations(rng, rooms, doors, width_m, height_m)
    return Scene(seed, width_m, height_m, rooms, doors, furniture, decorations)


def _round(length_m: float) -> float:
    """Whole millimetres: the JSON stays short and the digest does not depend on rounding errors."""
    return round(float(length_m), 3)


def _split(
    rng: np.random.Generator, width_m: float, height_m: float, num_rooms: int
) -> list[tuple[float, float, float, float]]:
    """Halve the largest rectangle along its longer side until there are enough."""
    rectangles = [(0.0, 0.0, width_m, height_m)]
    while len(rectangles) < num_rooms:
        rectangles.sort(key=_area, reverse=True)
        x0, y0, x1, y1 = rectangles.pop(0)
        share = rng.uniform(0.42, 0.58)
        if x1 - x0 > y1 - y0:
            x = _round(x0 + share * (x1 - x0))
            rectangles += [(x0, y0, x, y1), (x, y0, x1, y1)]
        else:
            y = _round(y0 + share * (y1 - y0))
            rectangles += [(x0, y0, x1, y), (x0, y, x1, y1)]
    return sorted(rectangles, key=_area, reverse=True)


def _area(rectangle: tuple[float, float, float, float]) -> float:
    x0, y0, x1, y1 = rectangle
    return (x1 - x0) * (y1 - y0)


def _rooms(rng: np.random.Generator, rectangles: list[tuple]) -> tuple[Room, ...]:
    """Kinds without repetition: large rooms live, the bathroom takes the smallest."""
    others = ["bedroom", "kitchen", "office", "dining room"]
    if len(rectangles) > 3:
        others.append("bathroom")
    kinds = ["living room"] + [str(kind) for kind in rng.permutation(others)]
    kinds = sorted(kinds[: len(rectangles)], key=lambda kind: kind == "bathroom")
    walls = rng.permutation(list(WALL_COLOURS))
    floors = rng.permutation(FLOOR_TEXTURES)
    rooms = []
    for index, (kind, (x0, y0, x1, y1)) in enumerate(zip(kinds, rectangles, strict=True)):
        wall = str(walls[index])
        floor = "tile" if kind == "bathroom" else str(floors[index])
        texture = str(rng.choice(WALL_TEXTURES))
        rooms.append(Room(index, kind, x0, y0, x1, y1, wall, WALL_COLOURS[wall], texture, floor))
    return tuple(rooms)


def _shared_walls(rooms: tuple[Room, ...]) -> list[tuple[Room, Room, WallSide, float, float]]:
    """Pairs of rooms with a common wall long enough for a door: (a, b, side, start, end)."""
    shared = []
    for index, first in enumerate(rooms):
        for second in rooms[:index]:
            for side in wall_sides(first):
                for other in wall_sides(second):
                    start = max(side.start_m, other.start_m)
                    end = min(side.end_m, other.end_m)
                    if (
                        side.axis == other.axis
                        and side.position_m == other.position_m
                        and side.sign == -other.sign
                        and end - start > _MIN_SHARED_WALL_M
                    ):
                        shared.append((first, second, side, start, end))
    return shared


def _doors(
    rng: np.random.Generator,
    rooms: tuple[Room, ...],
    width_m: float,
    height_m: float,
    config: SceneConfig,
) -> tuple[Door, ...] | None:
    """A random spanning tree, some loops, then closed outer doors; None where no tree exists."""
    colours = [str(colour) for colour in rng.permutation(DOOR_COLOURS)]
    doors: list[Door] = []
    group = list(range(len(rooms)))
    shared = _shared_walls(rooms)
    for index in rng.permutation(len(shared)):
        first, second, side, start, end = shared[index]
        joined = group[first.id] == group[second.id]
        if joined and rng.random() > config.loop_probability:
            continue
        old, new = group[first.id], group[second.id]
        group = [new if member == old else member for member in group]
        x, y = side.point(_round(rng.uniform(start + _DOOR_TO_CORNER_M, end - _DOOR_TO_CORNER_M)))
        style = "frame" if rng.random() < config.bare_frame_probability else "leaf"
        doors.append(
            _door(rng, len(doors), x, y, side, (first.id, second.id), colours.pop(), style)
        )
    if len(set(group)) > 1:
        return None
    for room in rooms:
        if rng.random() >= config.outer_door_probability:
            continue
        sides = [side for side in wall_sides(room) if _is_outer(side, width_m, height_m)]
        if not sides or not colours:
            continue
        side = sides[int(rng.integers(len(sides)))]
        x, y = side.point(_round(rng.uniform(side.start_m + 0.9, side.end_m - 0.9)))
        doors.append(_door(rng, len(doors), x, y, side, (room.id,), colours.pop(), "closed"))
    return tuple(doors)


def _door(
    rng: np.random.Generator,
    index: int,
    x_m: float,
    y_m: float,
    side: WallSide,
    room_ids: tuple[int, ...],
    colour: str,
    style: str,
) -> Door:
    swing_side, hinge_side = (int(sign) for sign in rng.choice([-1, 1], 2))
    return Door(index, x_m, y_m, side.axis, room_ids, colour, style, swing_side, hinge_side)


def _is_outer(side: WallSide, width_m: float, height_m: float) -> bool:
    return side.position_m in (0.0, height_m if side.axis == "x" else width_m)


def _decorations(
    rng: np.random.Generator,
    rooms: tuple[Room, ...],
    doors: tuple[Door, ...],
    width_m: float,
    height_m: float,
) -> tuple[Decoration, ...]:
    """A window on outer walls and a picture on most inner ones, away from the doors."""
    decorations = []
    for room in rooms:
        for side in wall_sides(room):
            outer = _is_outer(side, width_m, height_m)
            candidates = rng.uniform(side.start_m + 0.9, side.end_m - 0.9, 6)
            variant, hang = int(rng.integers(NUM_PICTURES)), rng.random() < 0.8
            taken = [along for along, _ in doors_on(side, doors)]
            free = [
                along
                for along in candidates
                if all(abs(along - door) > _DECORATION_TO_DOOR_M for door in taken)
            ]
            if free and (outer or hang):
                x, y = side.point(_round(free[0]))
                decorations.append(
                    Decoration(
                        "window" if outer else "picture",
                        x,
                        y,
                        side.axis,
                        side.sign,
                        room.id,
                        variant,
                    )
                )
    return tuple(decorations)

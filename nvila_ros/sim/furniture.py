# SPDX-License-Identifier: Apache-2.0
"""Furniture as parts: which builder makes which category."""

from __future__ import annotations

from collections.abc import Callable

from nvila_ros.sim import furniture_dry as dry
from nvila_ros.sim import furniture_wet as wet
from nvila_ros.sim.parts import Part
from nvila_ros.sim.scene import Furniture


def parts(piece: Furniture) -> list[Part]:
    """The parts of a piece; what is painted 'main' is its largest visible surface."""
    return _BUILDERS[piece.category](piece.depth_m, piece.width_m, piece.height_m)


_BUILDERS: dict[str, Callable[[float, float, float], list[Part]]] = {
    "sofa": dry.seat(2),
    "armchair": dry.seat(1),
    "coffee table": dry.coffee_table,
    "tv stand": dry.tv_stand,
    "bookshelf": dry.bookshelf,
    "floor lamp": dry.floor_lamp,
    "plant": dry.plant,
    "bed": dry.bed,
    "nightstand": dry.nightstand,
    "wardrobe": dry.wardrobe,
    "desk": dry.desk,
    "chair": dry.chair,
    "fridge": wet.fridge,
    "stove": wet.stove,
    "kitchen counter": wet.kitchen_counter,
    "dining table": dry.dining_table,
    "toilet": wet.toilet,
    "sink": wet.sink,
    "bathtub": wet.bathtub,
    "washing machine": wet.washing_machine,
    "trash bin": wet.trash_bin,
    "box": wet.carton,
    "rug": wet.rug,
    "stool": dry.stool,
}

# SPDX-License-Identifier: Apache-2.0
"""Furniture meshes that ship with the package; without the file every piece is drawn from boxes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PATH = Path(__file__).with_name("furniture.npz")


@dataclass(frozen=True, eq=False)
class MeshPart:
    """A surface of one paint, in a box of depth 1 (x, front at +), width 1 (y) and height 1 (z)."""

    is_main: bool  # takes the colour of the piece
    rgb: tuple[float, float, float]  # of the other parts
    vertices: np.ndarray  # (V, 3) float64, x and y in [-0.5, 0.5], z in [0, 1]
    faces: np.ndarray  # (F, 3) int


@dataclass(frozen=True, eq=False)
class FurnitureMesh:
    """One model of the asset file."""

    name: str
    category: str
    height_share: float  # of the height of its category: a table without the screen on it is lower
    parts: tuple[MeshPart, ...]


@functools.cache
def furniture_meshes() -> dict[str, FurnitureMesh]:
    """Every model by name; empty without the asset file."""
    if not _PATH.exists():
        return {}
    meshes = {}
    with np.load(_PATH, allow_pickle=False) as arrays:
        for key in arrays.files:
            if not key.endswith("/info"):
                continue
            name = key.removesuffix("/info")
            category, height_share, num_parts = (str(value) for value in arrays[key])
            parts = tuple(_part(arrays, f"{name}/{index}") for index in range(int(num_parts)))
            meshes[name] = FurnitureMesh(name, category, float(height_share), parts)
    return meshes


def mesh_names(category: str) -> list[str]:
    """Models that can stand for a category, in a fixed order."""
    return sorted(name for name, mesh in furniture_meshes().items() if mesh.category == category)


def _part(arrays: np.lib.npyio.NpzFile, key: str) -> MeshPart:
    red, green, blue, is_main = (float(value) for value in arrays[f"{key}/rgb"])
    return MeshPart(
        is_main > 0.5,
        (red, green, blue),
        arrays[f"{key}/vertices"] / 4095.0,
        arrays[f"{key}/faces"].astype(int),
    )

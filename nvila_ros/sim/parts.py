# SPDX-License-Identifier: Apache-2.0
"""The solids that furniture is put together from, in the frame of the piece."""

from __future__ import annotations

from dataclasses import dataclass

Colour = str | tuple[float, float, float]

# Turned profiles (radius, height) as shares of the part's size.
PROFILES: dict[str, tuple[tuple[float, float], ...]] = {
    "pot": (
        (0.001, 0),
        (0.62, 0),
        (0.75, 0.05),
        (1, 0.9),
        (1.05, 1),
        (0.85, 1),
        (0.85, 0.9),
        (0.001, 0.9),
    ),
    "shade": ((1, 0), (0.6, 1), (0.58, 1), (0.97, 0)),
    "bin": ((0.001, 0), (0.8, 0), (1, 1), (0.93, 1), (0.001, 0.9)),
    "bowl": ((0.001, 0), (0.4, 0), (0.8, 0.45), (1, 1), (0.93, 1), (0.7, 0.5), (0.001, 0.15)),
}


@dataclass(frozen=True)
class Part:
    """One visible solid in the frame of its piece: x to the front, y to the left, z up."""

    # 'box', 'cylinder', 'disc' (axis x), 'ellipsoid', 'panel' (faces x), 'leaf' or a profile
    shape: str
    centre_m: tuple[float, float, float]
    half_size_m: tuple[float, float, float]
    colour: Colour  # 'main', 'light', 'dark', 'wood', 'metal', 'white' or an RGB triple
    texture: str | None = None


def box(
    x: float,
    y: float,
    z0: float,
    z1: float,
    depth: float,
    width: float,
    colour: Colour = "main",
    texture: str | None = None,
) -> Part:
    """A box given by its middle, its lowest and highest z, and its sides."""
    return Part(
        "box", (x, y, (z0 + z1) / 2), (depth / 2, width / 2, (z1 - z0) / 2), colour, texture
    )


def cylinder(
    x: float, y: float, z0: float, z1: float, radius: float, colour: Colour = "main"
) -> Part:
    """An upright cylinder."""
    return Part("cylinder", (x, y, (z0 + z1) / 2), (radius, (z1 - z0) / 2, 0.0), colour)


def legs(
    depth: float, width: float, height: float, inset: float, half: float, colour: Colour = "main"
) -> list[Part]:
    """Four square legs at the corners."""
    return [
        box(
            sx * (depth / 2 - inset),
            sy * (width / 2 - inset),
            0,
            height,
            2 * half,
            2 * half,
            colour,
        )
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def handles(depth: float, y: float, z0: float, z1: float) -> Part:
    """An upright handle on the front."""
    return box(depth / 2 + 0.03, y, z0, z1, 0.02, 0.025, "metal")

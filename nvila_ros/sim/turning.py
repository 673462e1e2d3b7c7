# SPDX-License-Identifier: Apache-2.0
"""Meshes made in code: surfaces of revolution and leaves."""

from __future__ import annotations

import numpy as np


def turned(
    profile: tuple[tuple[float, float], ...], num_sides: int = 14
) -> tuple[np.ndarray, np.ndarray]:
    """Surface of revolution of a (radius, height) profile -> (V, 3) vertices, (F, 3) faces."""
    points = np.asarray(profile, float)
    angle = np.linspace(0, 2 * np.pi, num_sides, endpoint=False)
    vertices = np.stack(
        [
            np.outer(np.cos(angle), points[:, 0]),
            np.outer(np.sin(angle), points[:, 0]),
            np.tile(points[:, 1], (num_sides, 1)),
        ],
        -1,
    ).reshape(-1, 3)
    num_points, faces = len(points), []
    for side in range(num_sides):
        a, b = side * num_points, (side + 1) % num_sides * num_points
        for j in range(num_points - 1):
            faces += [[a + j, b + j, b + j + 1], [a + j, b + j + 1, a + j + 1]]
    return vertices, np.array(faces)


def leaf(reach_m: float, lift_m: float) -> tuple[np.ndarray, np.ndarray]:
    """A bent leaf from the origin outwards along x -> vertices, faces (both sides)."""
    t = np.linspace(0, 1, 6)
    half_width = 0.09 * np.sin(np.pi * t**0.8)
    x, z = reach_m * t, lift_m * t - 0.45 * lift_m * t**2.5
    vertices = np.concatenate(
        [np.c_[x, half_width, z], np.c_[x, -half_width, z], np.c_[x, 0 * x, z - 0.02]]
    )
    num, faces = len(t), []
    for i in range(num - 1):
        for a, b in ((0, 2), (2, 1), (1, 0)):
            faces += [
                [a * num + i, b * num + i, b * num + i + 1],
                [a * num + i, b * num + i + 1, a * num + i + 1],
            ]
    return vertices, np.array(faces)

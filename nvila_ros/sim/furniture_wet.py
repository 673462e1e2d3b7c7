# SPDX-License-Identifier: Apache-2.0
"""Parts of kitchen, bathroom and small furniture: depth d, width w, height h in m."""

from __future__ import annotations

from nvila_ros.sim.parts import Part, box, cylinder, handles


def fridge(d: float, w: float, h: float) -> list[Part]:
    """Two doors, one above the other."""
    return [
        box(0, 0, 0.03, h, d - 0.04, w),
        box(0, 0, 0, 0.03, d - 0.1, w - 0.06, "dark"),
        box(d / 2 - 0.01, 0, 0.06, h * 0.62, 0.05, w, "light"),
        box(d / 2 - 0.01, 0, h * 0.64, h, 0.05, w, "light"),
        handles(d, w / 2 - 0.08, h * 0.35, h * 0.6),
        handles(d, w / 2 - 0.08, h * 0.66, h * 0.82),
    ]


def stove(d: float, w: float, h: float) -> list[Part]:
    """Four rings, knobs and an oven window."""
    rings = [
        cylinder(sx * 0.14, sy * 0.15, 0.89, 0.905, 0.09, (0.45, 0.12, 0.10))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    knobs = [
        Part("disc", (d / 2 + 0.015, y, 0.80), (0.028, 0.015, 0.0), "white")
        for y in (-0.2, -0.07, 0.07, 0.2)
    ]
    return [
        box(0, 0, 0, 0.87, d, w),
        box(0, 0, 0.87, 0.89, d, w, "dark"),
        box(-d / 2 + 0.03, 0, 0.89, h + 0.12, 0.06, w),
        box(d / 2 + 0.006, 0, 0.28, 0.60, 0.014, w - 0.16, "dark"),
        box(d / 2 + 0.03, 0, 0.66, 0.69, 0.03, w - 0.12, "metal"),
        *rings,
        *knobs,
    ]


def kitchen_counter(d: float, w: float, h: float) -> list[Part]:
    """Doors in a row under a worktop with a sink."""
    num = max(2, int(w / 0.5))
    made = [
        box(0, 0, 0.08, h - 0.05, d - 0.04, w),
        box(0, 0, h - 0.05, h, d, w + 0.02, (0.72, 0.71, 0.68)),
        box(-0.03, 0, 0, 0.08, d - 0.1, w, "dark"),
        cylinder(-0.15, w / 4, h, h + 0.22, 0.02, "metal"),
        box(0, w / 4, h, h + 0.008, 0.36, 0.46, "metal"),
        box(0, w / 4, h + 0.008, h + 0.012, 0.3, 0.4, "dark"),
    ]
    for index in range(num):
        y = -w / 2 + w / num * (index + 0.5)
        made += [
            box(d / 2 - 0.014, y, 0.12, h - 0.09, 0.014, w / num - 0.03, "light"),
            box(d / 2 + 0.004, y, h - 0.18, h - 0.16, 0.025, 0.14, "metal"),
        ]
    return made


def toilet(d: float, w: float, h: float) -> list[Part]:
    """Tank, bowl and a white seat."""
    return [
        box(-d / 2 + 0.09, 0, 0.30, h, 0.18, w),
        box(-d / 2 + 0.09, 0, h, h + 0.025, 0.2, w + 0.02, "light"),
        cylinder(0.02, 0, 0, 0.34, 0.14),
        Part("ellipsoid", (0.07, 0, 0.34), (0.27, 0.20, 0.10), "main"),
        Part("ellipsoid", (0.07, 0, 0.425), (0.25, 0.19, 0.02), "white"),
    ]


def sink(d: float, w: float, h: float) -> list[Part]:
    """A cabinet with a basin and a framed mirror above it."""
    return [
        box(0, 0, 0.06, 0.78, d - 0.06, w - 0.04, "main", "wood"),
        box(0, 0, 0.78, 0.88, d, w, "white"),
        *[box(d / 2 - 0.02, s * w / 4, 0.12, 0.74, 0.014, w / 2 - 0.05, "light") for s in (-1, 1)],
        Part("ellipsoid", (0.03, 0, 0.88), (0.16, 0.22, 0.012), (0.62, 0.68, 0.72)),
        cylinder(-0.17, 0, 0.88, 1.02, 0.02, "metal"),
        box(-d / 2 + 0.02, 0, 1.1, h, 0.02, w - 0.04),
        box(-d / 2 + 0.032, 0, 1.14, h - 0.04, 0.01, w - 0.12, (0.74, 0.86, 0.92)),
    ]


def bathtub(d: float, w: float, h: float) -> list[Part]:
    """An open tub with water and a tap."""
    rim = 0.08
    return [
        box(0, 0, 0, 0.16, d, w),
        *[box(s * (d / 2 - rim / 2), 0, 0.16, h, rim, w) for s in (-1, 1)],
        *[box(0, s * (w / 2 - rim / 2), 0.16, h, d - 2 * rim, rim) for s in (-1, 1)],
        box(0, 0, 0.16, 0.42, d - 2 * rim, w - 2 * rim, (0.72, 0.88, 0.96)),
        cylinder(0, w / 2 - 0.04, h, h + 0.22, 0.025, "metal"),
        box(0, w / 2 - 0.12, h + 0.17, h + 0.21, 0.04, 0.18, "metal"),
    ]


def washing_machine(d: float, w: float, h: float) -> list[Part]:
    """A round glass door."""
    return [
        box(0, 0, 0, h, d, w),
        Part("disc", (d / 2 + 0.012, 0, 0.42), (0.22, 0.012, 0.0), "white"),
        Part("disc", (d / 2 + 0.024, 0, 0.42), (0.16, 0.012, 0.0), (0.14, 0.18, 0.26)),
        box(d / 2 + 0.006, 0, h - 0.15, h - 0.03, 0.014, w - 0.06, "light"),
        box(d / 2 + 0.012, w / 4, h - 0.12, h - 0.06, 0.014, 0.14, "dark"),
    ]


def trash_bin(d: float, w: float, h: float) -> list[Part]:
    """A round bin with a lid."""
    return [
        Part("bin", (0, 0, 0), (d / 2, d / 2, h - 0.03), "main"),
        cylinder(0, 0, h - 0.05, h, d / 2 + 0.01, "light"),
        cylinder(0, 0, h, h + 0.03, 0.04, "dark"),
    ]


def carton(d: float, w: float, h: float) -> list[Part]:
    """A closed box with packing tape."""
    return [
        box(0, 0, 0, h, d, w),
        box(0, 0, h, h + 0.006, 0.07, w, (0.88, 0.80, 0.55)),
        box(d / 2 + 0.003, 0, h * 0.6, h, 0.006, 0.07, (0.88, 0.80, 0.55)),
        box(-d / 2 - 0.003, 0, h * 0.6, h, 0.006, 0.07, (0.88, 0.80, 0.55)),
    ]


def rug(d: float, w: float, h: float) -> list[Part]:
    """A flat patterned rug."""
    return [Part("box", (0, 0, h / 2), (d / 2, w / 2, h / 2), "main", "rug")]

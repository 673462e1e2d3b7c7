# SPDX-License-Identifier: Apache-2.0
"""Parts of what stands in living rooms, bedrooms and offices: depth d, width w, height h in m."""

from __future__ import annotations

from collections.abc import Callable

from nvila_ros.sim.parts import Part, box, cylinder, handles, legs


def seat(num_cushions: int) -> Callable[[float, float, float], list[Part]]:
    """A sofa or an armchair, by the number of cushions."""

    def build(d: float, w: float, h: float) -> list[Part]:
        made = [
            box(0, 0, 0.07, 0.30, d, w, "main", "fabric"),
            box(-d / 2 + 0.11, 0, 0.30, h, 0.22, w, "main", "fabric"),
            *legs(d, w, 0.07, 0.08, 0.03, "dark"),
        ]
        made += [box(0, s * (w / 2 - 0.09), 0.30, 0.60, d, 0.18, "main", "fabric") for s in (-1, 1)]
        inner = (w - 0.36) / num_cushions
        for index in range(num_cushions):
            y = -w / 2 + 0.18 + inner * (index + 0.5)
            made += [
                box(0.09, y, 0.30, 0.44, d - 0.24, inner - 0.02, "light", "fabric"),
                box(-d / 2 + 0.26, y, 0.44, h - 0.05, 0.10, inner - 0.04, "light", "fabric"),
            ]
        return made

    return build


def coffee_table(d: float, w: float, h: float) -> list[Part]:
    """Low table with a shelf and a book."""
    return [
        box(0, 0, h - 0.07, h, d, w, "main", "wood"),
        *legs(d, w, h - 0.07, 0.06, 0.035),
        box(0, 0, 0.12, 0.15, d - 0.1, w - 0.1, "main", "wood"),
        box(0.05, 0.2, h, h + 0.03, 0.2, 0.28, "dark"),
        box(0.05, 0.2, h + 0.03, h + 0.05, 0.16, 0.22, "white"),
    ]


def dining_table(d: float, w: float, h: float) -> list[Part]:
    """High table with a bowl."""
    return [
        box(0, 0, h - 0.06, h, d, w, "main", "wood"),
        *legs(d, w, h - 0.06, 0.07, 0.04),
        box(0, 0, h - 0.14, h - 0.06, d - 0.12, w - 0.12),
        Part("bowl", (0, 0, h), (0.15, 0.15, 0.09), "white"),
    ]


def desk(d: float, w: float, h: float) -> list[Part]:
    """Writing desk with drawers, a screen and a keyboard."""
    screen = w * 0.5
    return [
        box(0, 0, 0.71, 0.76, d, w, "main", "wood"),
        box(0, w / 2 - 0.2, 0.05, 0.71, d - 0.04, 0.38, "main", "wood"),
        box(0, -w / 2 + 0.03, 0, 0.71, d - 0.04, 0.05, "main", "wood"),
        box(-d / 2 + 0.04, 0, 0.25, 0.71, 0.03, w - 0.1),
        *[
            box(d / 2 - 0.01, w / 2 - 0.2, z, z + 0.17, 0.02, 0.33, "light")
            for z in (0.1, 0.3, 0.5)
        ],
        box(-0.12, -0.1, 0.86, h, 0.03, screen, "dark"),
        box(-0.12, -0.1, 0.76, 0.88, 0.05, 0.06, "dark"),
        box(-0.1, -0.1, 0.885, h - 0.025, 0.008, screen - 0.05, (0.55, 0.70, 0.85)),
        box(0.12, -0.1, 0.76, 0.78, 0.14, 0.4, "dark"),
    ]


def chair(d: float, w: float, h: float) -> list[Part]:
    """Four legs, a seat, a back."""
    return [
        box(0, 0, 0.42, 0.47, d, w, "main", "wood"),
        *legs(d, w, 0.42, 0.03, 0.022),
        box(-d / 2 + 0.02, 0, 0.60, h, 0.035, w, "main", "wood"),
        *[box(-d / 2 + 0.02, s * (w / 2 - 0.03), 0.47, 0.60, 0.03, 0.035) for s in (-1, 1)],
    ]


def stool(d: float, w: float, h: float) -> list[Part]:
    """A round seat on one foot."""
    return [
        cylinder(0, 0, h - 0.08, h, d / 2),
        cylinder(0, 0, 0.05, h - 0.08, 0.05),
        cylinder(0, 0, 0, 0.05, d / 2 - 0.03),
    ]


def tv_stand(d: float, w: float, h: float) -> list[Part]:
    """A low cabinet under a television."""
    screen = min(w * 0.8, 1.15)
    return [
        box(0, 0, 0.05, 0.50, d, w, "main", "wood"),
        box(0, 0, 0, 0.05, d - 0.08, w - 0.08, "dark"),
        *[box(d / 2 + 0.006, s * w / 4, 0.10, 0.45, 0.014, w / 2 - 0.06, "light") for s in (-1, 1)],
        box(0, 0, 0.57, h, 0.05, screen, "dark"),
        box(0, 0, 0.50, 0.58, 0.14, 0.3, "dark"),
        box(0.026, 0, 0.60, h - 0.03, 0.008, screen - 0.06, (0.12, 0.16, 0.26)),
    ]


def bookshelf(d: float, w: float, h: float) -> list[Part]:
    """A closed base and three rows of books."""
    base, num_rows = h * 0.40, 3
    row = (h - 0.03 - base) / num_rows
    made = [box(0, 0, 0, base, d, w, "main", "wood"), box(-d / 2 + 0.015, 0, base, h, 0.03, w)]
    made += [
        box(d / 2 + 0.006, s * w / 4, 0.06, base - 0.05, 0.014, w / 2 - 0.04, "light")
        for s in (-1, 1)
    ]
    made += [box(0, s * (w / 2 - 0.025), base, h, d, 0.05, "main", "wood") for s in (-1, 1)]
    for index in range(num_rows + 1):
        z = base + index * row
        made.append(box(0, 0, z, z + 0.03, d + 0.004, w, "main", "wood"))
        if index < num_rows:
            half = (row - 0.03) * 0.42
            made.append(
                Part(
                    "panel",
                    (-0.02, 0, z + 0.03 + half),
                    (d / 2 - 0.06, w / 2 - 0.06, half),
                    (1.0, 1.0, 1.0),
                    "books",
                )
            )
    return made


def floor_lamp(d: float, w: float, h: float) -> list[Part]:
    """A dark pole; the shade takes the colour."""
    return [
        cylinder(0, 0, 0, 0.04, d / 2 - 0.02, "dark"),
        cylinder(0, 0, 0.04, h - 0.35, 0.022, "dark"),
        Part("shade", (0, 0, h - 0.42), (d / 2 + 0.06, d / 2 + 0.06, 0.42), "main"),
    ]


def plant(d: float, w: float, h: float) -> list[Part]:
    """Green leaves; the pot takes the colour."""
    made = [
        Part("pot", (0, 0, 0), (d / 2 - 0.02, d / 2 - 0.02, 0.50), "main"),
        cylinder(0, 0, 0.46, h - 0.45, 0.025, (0.30, 0.20, 0.10)),
    ]
    for index in range(9):
        shade = (0.10 + 0.04 * (index % 3), 0.40 + 0.07 * (index % 2), 0.13)
        reach, lift = 0.30 + 0.08 * (index % 3), 0.55 + 0.1 * (index * 7 % 4)
        made.append(Part("leaf", (0, 0, 0.46), (index * 2.4, reach, lift), shade))
    return made


def bed(d: float, w: float, h: float) -> list[Part]:
    """Headboard, mattress, blanket and two pillows."""
    return [
        box(0, 0, 0.06, 0.32, d, w, "main", "wood"),
        box(-d / 2 + 0.05, 0, 0, h, 0.10, w, "main", "wood"),
        box(0.04, 0, 0.32, 0.50, d - 0.12, w - 0.06, "white"),
        box(0.28, 0, 0.30, 0.54, d - 0.58, w + 0.01, "main", "fabric"),
        *[box(-d / 2 + 0.34, s * w / 4, 0.50, 0.60, 0.36, w / 2 - 0.16, "white") for s in (-1, 1)],
    ]


def nightstand(d: float, w: float, h: float) -> list[Part]:
    """Two drawers and a small lamp."""
    return [
        box(0, 0, 0.05, 0.52, d, w, "main", "wood"),
        *legs(d, w, 0.05, 0.04, 0.025, "dark"),
        *[box(d / 2 + 0.006, 0, z, z + 0.18, 0.014, w - 0.08, "light") for z in (0.09, 0.30)],
        *[box(d / 2 + 0.02, 0, z, z + 0.02, 0.015, 0.1, "metal") for z in (0.17, 0.38)],
        cylinder(0, 0, 0.52, 0.66, 0.03, "metal"),
        Part("shade", (0, 0, h - 0.2), (0.13, 0.13, 0.2), "white"),
    ]


def wardrobe(d: float, w: float, h: float) -> list[Part]:
    """Two tall doors."""
    return [
        box(0, 0, 0.05, h, d, w, "main", "wood"),
        box(0, 0, 0, 0.05, d - 0.06, w - 0.06, "dark"),
        *[
            box(d / 2 + 0.006, s * w / 4, 0.10, h - 0.06, 0.014, w / 2 - 0.05, "light", "wood")
            for s in (-1, 1)
        ],
        *[handles(d, s * 0.06, 0.90, 1.20) for s in (-1, 1)],
    ]

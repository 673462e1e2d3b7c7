# SPDX-License-Identifier: Apache-2.0
"""Furniture as parts: a category and a size become boxes, cylinders and turned shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvila_ros.sim.scene import Furniture

Colour = str | tuple[float, float, float]

# Turned profiles (radius, height) as shares of the part's size.
PROFILES: dict[str, tuple[tuple[float, float], ...]] = {
    'pot': ((0.001, 0), (0.62, 0), (0.75, 0.05), (1, 0.9), (1.05, 1), (0.85, 1), (0.85, 0.9),
            (0.001, 0.9)),
    'shade': ((1, 0), (0.6, 1), (0.58, 1), (0.97, 0)),
    'bin': ((0.001, 0), (0.8, 0), (1, 1), (0.93, 1), (0.001, 0.9)),
    'bowl': ((0.001, 0), (0.4, 0), (0.8, 0.45), (1, 1), (0.93, 1), (0.7, 0.5), (0.001, 0.15)),
}


@dataclass(frozen=True)
class Part:
    """One visible solid in the frame of its piece: x to the front, y to the left, z up."""

    shape: str  # 'box', 'cylinder', 'disc' (axis x), 'ellipsoid', 'panel' (faces x), 'leaf', a profile
    centre_m: tuple[float, float, float]
    half_size_m: tuple[float, float, float]
    colour: Colour  # 'main', 'light', 'dark', 'wood', 'metal', 'white' or an RGB triple
    texture: str | None = None


def parts(piece: Furniture) -> list[Part]:
    """The parts of a piece; what is painted 'main' is its largest visible surface."""
    return _BUILDERS[piece.category](piece.depth_m, piece.width_m, piece.height_m)


def _box(x: float, y: float, z0: float, z1: float, depth: float, width: float,
         colour: Colour = 'main', texture: str | None = None) -> Part:
    return Part('box', (x, y, (z0 + z1) / 2), (depth / 2, width / 2, (z1 - z0) / 2), colour, texture)


def _cylinder(x: float, y: float, z0: float, z1: float, radius: float,
              colour: Colour = 'main') -> Part:
    return Part('cylinder', (x, y, (z0 + z1) / 2), (radius, (z1 - z0) / 2, 0.0), colour)


def _legs(depth: float, width: float, height: float, inset: float, half: float,
          colour: Colour = 'main') -> list[Part]:
    return [_box(sx * (depth / 2 - inset), sy * (width / 2 - inset), 0, height, 2 * half, 2 * half, colour)
            for sx in (-1, 1) for sy in (-1, 1)]


def _handles(depth: float, y: float, z0: float, z1: float) -> Part:
    return _box(depth / 2 + 0.03, y, z0, z1, 0.02, 0.025, 'metal')


def _seat(num_cushions: int) -> Callable[[float, float, float], list[Part]]:
    def build(d: float, w: float, h: float) -> list[Part]:
        made = [_box(0, 0, 0.07, 0.30, d, w, 'main', 'fabric'),
                _box(-d / 2 + 0.11, 0, 0.30, h, 0.22, w, 'main', 'fabric'),
                *_legs(d, w, 0.07, 0.08, 0.03, 'dark')]
        made += [_box(0, s * (w / 2 - 0.09), 0.30, 0.60, d, 0.18, 'main', 'fabric') for s in (-1, 1)]
        inner = (w - 0.36) / num_cushions
        for index in range(num_cushions):
            y = -w / 2 + 0.18 + inner * (index + 0.5)
            made += [_box(0.09, y, 0.30, 0.44, d - 0.24, inner - 0.02, 'light', 'fabric'),
                     _box(-d / 2 + 0.26, y, 0.44, h - 0.05, 0.10, inner - 0.04, 'light', 'fabric')]
        return made
    return build


def _coffee_table(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, h - 0.07, h, d, w, 'main', 'wood'), *_legs(d, w, h - 0.07, 0.06, 0.035),
            _box(0, 0, 0.12, 0.15, d - 0.1, w - 0.1, 'main', 'wood'),
            _box(0.05, 0.2, h, h + 0.03, 0.2, 0.28, 'dark'),
            _box(0.05, 0.2, h + 0.03, h + 0.05, 0.16, 0.22, 'white')]


def _dining_table(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, h - 0.06, h, d, w, 'main', 'wood'), *_legs(d, w, h - 0.06, 0.07, 0.04),
            _box(0, 0, h - 0.14, h - 0.06, d - 0.12, w - 0.12),
            Part('bowl', (0, 0, h), (0.15, 0.15, 0.09), 'white')]


def _desk(d: float, w: float, h: float) -> list[Part]:
    screen = w * 0.5
    return [_box(0, 0, 0.71, 0.76, d, w, 'main', 'wood'),
            _box(0, w / 2 - 0.2, 0.05, 0.71, d - 0.04, 0.38, 'main', 'wood'),
            _box(0, -w / 2 + 0.03, 0, 0.71, d - 0.04, 0.05, 'main', 'wood'),
            _box(-d / 2 + 0.04, 0, 0.25, 0.71, 0.03, w - 0.1),
            *[_box(d / 2 - 0.01, w / 2 - 0.2, z, z + 0.17, 0.02, 0.33, 'light') for z in (0.1, 0.3, 0.5)],
            _box(-0.12, -0.1, 0.86, h, 0.03, screen, 'dark'), _box(-0.12, -0.1, 0.76, 0.88, 0.05, 0.06, 'dark'),
            _box(-0.1, -0.1, 0.885, h - 0.025, 0.008, screen - 0.05, (0.55, 0.70, 0.85)),
            _box(0.12, -0.1, 0.76, 0.78, 0.14, 0.4, 'dark')]


def _chair(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0.42, 0.47, d, w, 'main', 'wood'), *_legs(d, w, 0.42, 0.03, 0.022),
            _box(-d / 2 + 0.02, 0, 0.60, h, 0.035, w, 'main', 'wood'),
            *[_box(-d / 2 + 0.02, s * (w / 2 - 0.03), 0.47, 0.60, 0.03, 0.035) for s in (-1, 1)]]


def _stool(d: float, w: float, h: float) -> list[Part]:
    return [_cylinder(0, 0, h - 0.08, h, d / 2), _cylinder(0, 0, 0.05, h - 0.08, 0.05),
            _cylinder(0, 0, 0, 0.05, d / 2 - 0.03)]


def _tv_stand(d: float, w: float, h: float) -> list[Part]:
    screen = min(w * 0.8, 1.15)
    return [_box(0, 0, 0.05, 0.50, d, w, 'main', 'wood'), _box(0, 0, 0, 0.05, d - 0.08, w - 0.08, 'dark'),
            *[_box(d / 2 + 0.006, s * w / 4, 0.10, 0.45, 0.014, w / 2 - 0.06, 'light') for s in (-1, 1)],
            _box(0, 0, 0.57, h, 0.05, screen, 'dark'), _box(0, 0, 0.50, 0.58, 0.14, 0.3, 'dark'),
            _box(0.026, 0, 0.60, h - 0.03, 0.008, screen - 0.06, (0.12, 0.16, 0.26))]


def _bookshelf(d: float, w: float, h: float) -> list[Part]:
    base, num_rows = h * 0.40, 3
    row = (h - 0.03 - base) / num_rows
    made = [_box(0, 0, 0, base, d, w, 'main', 'wood'), _box(-d / 2 + 0.015, 0, base, h, 0.03, w)]
    made += [_box(d / 2 + 0.006, s * w / 4, 0.06, base - 0.05, 0.014, w / 2 - 0.04, 'light') for s in (-1, 1)]
    made += [_box(0, s * (w / 2 - 0.025), base, h, d, 0.05, 'main', 'wood') for s in (-1, 1)]
    for index in range(num_rows + 1):
        z = base + index * row
        made.append(_box(0, 0, z, z + 0.03, d + 0.004, w, 'main', 'wood'))
        if index < num_rows:
            half = (row - 0.03) * 0.42
            made.append(Part('panel', (-0.02, 0, z + 0.03 + half), (d / 2 - 0.06, w / 2 - 0.06, half),
                             (1.0, 1.0, 1.0), 'books'))
    return made


def _floor_lamp(d: float, w: float, h: float) -> list[Part]:
    return [_cylinder(0, 0, 0, 0.04, d / 2 - 0.02, 'dark'), _cylinder(0, 0, 0.04, h - 0.35, 0.022, 'dark'),
            Part('shade', (0, 0, h - 0.42), (d / 2 + 0.06, d / 2 + 0.06, 0.42), 'main')]


def _plant(d: float, w: float, h: float) -> list[Part]:
    made = [Part('pot', (0, 0, 0), (d / 2 - 0.02, d / 2 - 0.02, 0.50), 'main'),
            _cylinder(0, 0, 0.46, h - 0.45, 0.025, (0.30, 0.20, 0.10))]
    for index in range(9):
        shade = (0.10 + 0.04 * (index % 3), 0.40 + 0.07 * (index % 2), 0.13)
        reach, lift = 0.30 + 0.08 * (index % 3), 0.55 + 0.1 * (index * 7 % 4)
        made.append(Part('leaf', (0, 0, 0.46), (index * 2.4, reach, lift), shade))
    return made


def _bed(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0.06, 0.32, d, w, 'main', 'wood'), _box(-d / 2 + 0.05, 0, 0, h, 0.10, w, 'main', 'wood'),
            _box(0.04, 0, 0.32, 0.50, d - 0.12, w - 0.06, 'white'),
            _box(0.28, 0, 0.30, 0.54, d - 0.58, w + 0.01, 'main', 'fabric'),
            *[_box(-d / 2 + 0.34, s * w / 4, 0.50, 0.60, 0.36, w / 2 - 0.16, 'white') for s in (-1, 1)]]


def _nightstand(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0.05, 0.52, d, w, 'main', 'wood'), *_legs(d, w, 0.05, 0.04, 0.025, 'dark'),
            *[_box(d / 2 + 0.006, 0, z, z + 0.18, 0.014, w - 0.08, 'light') for z in (0.09, 0.30)],
            *[_box(d / 2 + 0.02, 0, z, z + 0.02, 0.015, 0.1, 'metal') for z in (0.17, 0.38)],
            _cylinder(0, 0, 0.52, 0.66, 0.03, 'metal'), Part('shade', (0, 0, h - 0.2), (0.13, 0.13, 0.2), 'white')]


def _wardrobe(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0.05, h, d, w, 'main', 'wood'), _box(0, 0, 0, 0.05, d - 0.06, w - 0.06, 'dark'),
            *[_box(d / 2 + 0.006, s * w / 4, 0.10, h - 0.06, 0.014, w / 2 - 0.05, 'light', 'wood')
              for s in (-1, 1)],
            *[_handles(d, s * 0.06, 0.90, 1.20) for s in (-1, 1)]]


def _fridge(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0.03, h, d - 0.04, w), _box(0, 0, 0, 0.03, d - 0.1, w - 0.06, 'dark'),
            _box(d / 2 - 0.01, 0, 0.06, h * 0.62, 0.05, w, 'light'),
            _box(d / 2 - 0.01, 0, h * 0.64, h, 0.05, w, 'light'),
            _handles(d, w / 2 - 0.08, h * 0.35, h * 0.6), _handles(d, w / 2 - 0.08, h * 0.66, h * 0.82)]


def _stove(d: float, w: float, h: float) -> list[Part]:
    rings = [_cylinder(sx * 0.14, sy * 0.15, 0.89, 0.905, 0.09, (0.45, 0.12, 0.10))
             for sx in (-1, 1) for sy in (-1, 1)]
    knobs = [Part('disc', (d / 2 + 0.015, y, 0.80), (0.028, 0.015, 0.0), 'white')
             for y in (-0.2, -0.07, 0.07, 0.2)]
    return [_box(0, 0, 0, 0.87, d, w), _box(0, 0, 0.87, 0.89, d, w, 'dark'),
            _box(-d / 2 + 0.03, 0, 0.89, h + 0.12, 0.06, w),
            _box(d / 2 + 0.006, 0, 0.28, 0.60, 0.014, w - 0.16, 'dark'),
            _box(d / 2 + 0.03, 0, 0.66, 0.69, 0.03, w - 0.12, 'metal'), *rings, *knobs]


def _kitchen_counter(d: float, w: float, h: float) -> list[Part]:
    num = max(2, int(w / 0.5))
    made = [_box(0, 0, 0.08, h - 0.05, d - 0.04, w), _box(0, 0, h - 0.05, h, d, w + 0.02, (0.72, 0.71, 0.68)),
            _box(-0.03, 0, 0, 0.08, d - 0.1, w, 'dark'), _cylinder(-0.15, w / 4, h, h + 0.22, 0.02, 'metal'),
            _box(0, w / 4, h, h + 0.008, 0.36, 0.46, 'metal'), _box(0, w / 4, h + 0.008, h + 0.012, 0.3, 0.4, 'dark')]
    for index in range(num):
        y = -w / 2 + w / num * (index + 0.5)
        made += [_box(d / 2 - 0.014, y, 0.12, h - 0.09, 0.014, w / num - 0.03, 'light'),
                 _box(d / 2 + 0.004, y, h - 0.18, h - 0.16, 0.025, 0.14, 'metal')]
    return made


def _toilet(d: float, w: float, h: float) -> list[Part]:
    return [_box(-d / 2 + 0.09, 0, 0.30, h, 0.18, w), _box(-d / 2 + 0.09, 0, h, h + 0.025, 0.2, w + 0.02, 'light'),
            _cylinder(0.02, 0, 0, 0.34, 0.14), Part('ellipsoid', (0.07, 0, 0.34), (0.27, 0.20, 0.10), 'main'),
            Part('ellipsoid', (0.07, 0, 0.425), (0.25, 0.19, 0.02), 'white')]


def _sink(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0.06, 0.78, d - 0.06, w - 0.04, 'main', 'wood'), _box(0, 0, 0.78, 0.88, d, w, 'white'),
            *[_box(d / 2 - 0.02, s * w / 4, 0.12, 0.74, 0.014, w / 2 - 0.05, 'light') for s in (-1, 1)],
            Part('ellipsoid', (0.03, 0, 0.88), (0.16, 0.22, 0.012), (0.62, 0.68, 0.72)),
            _cylinder(-0.17, 0, 0.88, 1.02, 0.02, 'metal'), _box(-d / 2 + 0.02, 0, 1.1, h, 0.02, w - 0.04),
            _box(-d / 2 + 0.032, 0, 1.14, h - 0.04, 0.01, w - 0.12, (0.74, 0.86, 0.92))]


def _bathtub(d: float, w: float, h: float) -> list[Part]:
    rim = 0.08
    return [_box(0, 0, 0, 0.16, d, w),
            *[_box(s * (d / 2 - rim / 2), 0, 0.16, h, rim, w) for s in (-1, 1)],
            *[_box(0, s * (w / 2 - rim / 2), 0.16, h, d - 2 * rim, rim) for s in (-1, 1)],
            _box(0, 0, 0.16, 0.42, d - 2 * rim, w - 2 * rim, (0.72, 0.88, 0.96)),
            _cylinder(0, w / 2 - 0.04, h, h + 0.22, 0.025, 'metal'),
            _box(0, w / 2 - 0.12, h + 0.17, h + 0.21, 0.04, 0.18, 'metal')]


def _washing_machine(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0, h, d, w), Part('disc', (d / 2 + 0.012, 0, 0.42), (0.22, 0.012, 0.0), 'white'),
            Part('disc', (d / 2 + 0.024, 0, 0.42), (0.16, 0.012, 0.0), (0.14, 0.18, 0.26)),
            _box(d / 2 + 0.006, 0, h - 0.15, h - 0.03, 0.014, w - 0.06, 'light'),
            _box(d / 2 + 0.012, w / 4, h - 0.12, h - 0.06, 0.014, 0.14, 'dark')]


def _trash_bin(d: float, w: float, h: float) -> list[Part]:
    return [Part('bin', (0, 0, 0), (d / 2, d / 2, h - 0.03), 'main'),
            _cylinder(0, 0, h - 0.05, h, d / 2 + 0.01, 'light'), _cylinder(0, 0, h, h + 0.03, 0.04, 'dark')]


def _carton(d: float, w: float, h: float) -> list[Part]:
    return [_box(0, 0, 0, h, d, w), _box(0, 0, h, h + 0.006, 0.07, w, (0.88, 0.80, 0.55)),
            _box(d / 2 + 0.003, 0, h * 0.6, h, 0.006, 0.07, (0.88, 0.80, 0.55)),
            _box(-d / 2 - 0.003, 0, h * 0.6, h, 0.006, 0.07, (0.88, 0.80, 0.55))]


def _rug(d: float, w: float, h: float) -> list[Part]:
    return [Part('box', (0, 0, h / 2), (d / 2, w / 2, h / 2), 'main', 'rug')]


_BUILDERS: dict[str, Callable[[float, float, float], list[Part]]] = {
    'sofa': _seat(2), 'armchair': _seat(1), 'coffee table': _coffee_table, 'tv stand': _tv_stand,
    'bookshelf': _bookshelf, 'floor lamp': _floor_lamp, 'plant': _plant, 'bed': _bed,
    'nightstand': _nightstand, 'wardrobe': _wardrobe, 'desk': _desk, 'chair': _chair, 'fridge': _fridge,
    'stove': _stove, 'kitchen counter': _kitchen_counter, 'dining table': _dining_table,
    'toilet': _toilet, 'sink': _sink, 'bathtub': _bathtub, 'washing machine': _washing_machine,
    'trash bin': _trash_bin, 'box': _carton, 'rug': _rug, 'stool': _stool,
}

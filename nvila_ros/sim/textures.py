# SPDX-License-Identifier: Apache-2.0
"""Surface textures made in code: a name becomes a tileable picture, the same on every machine."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np

TEXTURE_SIZE_PX = 128  # tiles repeat about every metre: finer detail is lost at 224 px anyway


@functools.lru_cache(maxsize=64)
def texture(name: str) -> np.ndarray:
    """(S, S, 3) uint8; an index at the end of the name ('picture3') makes a variant."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rstrip("0123456789")
    picture = (np.clip(_MAKERS[kind](rng), 0, 1) * 255).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def _axes() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:TEXTURE_SIZE_PX, :TEXTURE_SIZE_PX]
    return x, y


def _noise(rng: np.random.Generator, falloff: float) -> np.ndarray:
    """(S, S) smooth tileable noise in [0, 1]; a larger falloff is smoother."""
    frequency = np.fft.fftfreq(TEXTURE_SIZE_PX)
    gain = 1 / (1e-3 + np.hypot(frequency[:, None], frequency[None])) ** falloff
    white = rng.normal(size=(TEXTURE_SIZE_PX, TEXTURE_SIZE_PX))
    field = np.real(np.fft.ifft2(np.fft.fft2(white) * gain))
    return (field - field.min()) / (field.max() - field.min())


def _planks(base: tuple[float, float, float]) -> Callable[[np.random.Generator], np.ndarray]:
    def make(rng: np.random.Generator) -> np.ndarray:
        size, num_rows = TEXTURE_SIZE_PX, 8
        x, y = _axes()
        row = y * num_rows // size
        offset = rng.integers(0, size, num_rows)
        shade = rng.uniform(0.82, 1.12, (num_rows, 3))
        column = ((x + offset[row]) % size) * 2 // size
        grain = 1 + 0.05 * rng.normal(size=(size, 1)) * np.ones((1, size))
        picture = np.array(base) * (shade[row, column] * grain)[..., None]
        seam = (y % (size // num_rows) == 0) | (((x + offset[row]) % (size // 2)) < 1)
        picture[seam] *= 0.6
        return picture

    return make


def _tiles(base: tuple[float, float, float]) -> Callable[[np.random.Generator], np.ndarray]:
    def make(rng: np.random.Generator) -> np.ndarray:
        x, y = _axes()
        half = TEXTURE_SIZE_PX // 2
        picture = np.array(base) * (0.94 + 0.12 * _noise(rng, 1.6))[..., None]
        picture[(x % half < 2) | (y % half < 2)] = np.array(base) * 0.65
        return picture

    return make


def _carpet(base: tuple[float, float, float]) -> Callable[[np.random.Generator], np.ndarray]:
    def make(rng: np.random.Generator) -> np.ndarray:
        white = rng.normal(size=(TEXTURE_SIZE_PX, TEXTURE_SIZE_PX))
        return np.array(base) * (1 + 0.07 * white + 0.12 * (_noise(rng, 1.3) - 0.5))[..., None]

    return make


def _checker(rng: np.random.Generator) -> np.ndarray:
    x, y = _axes()
    half = TEXTURE_SIZE_PX // 2
    light = ((x // half + y // half) % 2)[..., None]
    shade = (0.95 + 0.1 * _noise(rng, 1.4))[..., None]
    return np.where(light, (0.86, 0.85, 0.82), (0.34, 0.35, 0.37)) * shade


def _plaster(rng: np.random.Generator) -> np.ndarray:
    white = rng.normal(size=(TEXTURE_SIZE_PX, TEXTURE_SIZE_PX))
    return np.ones(3) * (0.98 + 0.04 * (_noise(rng, 1.0) - 0.5) + 0.012 * white)[..., None]


def _stripes(rng: np.random.Generator) -> np.ndarray:
    x, _ = _axes()
    return np.ones(3) * np.where((x * 8 // TEXTURE_SIZE_PX) % 2, 1.0, 0.90)[..., None]


def _bricks(rng: np.random.Generator) -> np.ndarray:
    size, num_rows = TEXTURE_SIZE_PX, 8
    x, y = _axes()
    row = y * num_rows // size
    shifted = (x + (row % 2) * size // 8) % size
    shade = 0.92 + 0.08 * rng.random((num_rows, 4))[row, shifted * 4 // size]
    picture = np.ones(3) * shade[..., None]
    picture[(y % (size // num_rows) < 1) | (shifted % (size // 4) < 1)] *= 0.82
    return picture


def _wood(rng: np.random.Generator) -> np.ndarray:
    x, _ = _axes()
    rings = np.sin((x + 15 * _noise(rng, 1.5)) / TEXTURE_SIZE_PX * 2 * np.pi * 9)
    return np.ones(3) * (0.95 + 0.05 * rings)[..., None]


def _fabric(rng: np.random.Generator) -> np.ndarray:
    white = rng.normal(size=(TEXTURE_SIZE_PX, TEXTURE_SIZE_PX))
    return np.ones(3) * (0.96 + 0.035 * white)[..., None]


def _rug(rng: np.random.Generator) -> np.ndarray:
    x, y = _axes()
    half = TEXTURE_SIZE_PX / 2
    distance = np.maximum(abs(x + 0.5 - half), abs(y + 0.5 - half)) / half
    return np.ones(3) * np.where((distance * 7).astype(int) % 2, 1.0, 0.75)[..., None]


def _picture(rng: np.random.Generator) -> np.ndarray:
    """Soft shapes in muted tones: a picture must not look like a coloured door."""
    x, y = _axes()
    size = TEXTURE_SIZE_PX
    picture = np.ones((size, size, 3)) * rng.uniform(0.55, 0.9, 3)
    for _ in range(12):
        centre, radius = rng.uniform(0, size, 2), rng.uniform(0.06, 0.28) * size
        round_shape = np.hypot(x - centre[0], y - centre[1]) < radius
        bar = (abs(x - centre[0]) < radius) & (abs(y - centre[1]) < radius * rng.uniform(0.2, 1))
        tone = rng.uniform(0.15, 0.85, 3)
        picture[round_shape if rng.random() < 0.5 else bar] = tone * 0.6 + tone.mean() * 0.4
    return picture


def _books(rng: np.random.Generator) -> np.ndarray:
    size = TEXTURE_SIZE_PX
    picture = np.full((size, size, 3), 0.12)
    left = 0
    while left < size:
        width, top = int(rng.integers(4, 10)), int(size * rng.uniform(0.05, 0.3))
        tone = rng.uniform(0.15, 0.75, 3)
        picture[top:, left : left + width - 1] = tone * 0.5 + tone.mean() * 0.5
        left += width
    return picture


def _window(rng: np.random.Generator) -> np.ndarray:
    x, y = _axes()
    size = TEXTURE_SIZE_PX
    height = np.linspace(0, 1, size)[:, None, None]
    picture = (1 - height) * np.array((0.60, 0.77, 0.95)) + height * np.array((0.88, 0.94, 1.0))
    picture = np.repeat(picture, size, 1)
    hills = size * (0.74 + 0.06 * np.sin(x / size * 9) + 0.03 * np.sin(x / size * 23))
    picture[y > hills] = (0.42, 0.55, 0.36)
    return picture


_MAKERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "planks": _planks((0.66, 0.50, 0.33)),
    "planks_dark": _planks((0.42, 0.29, 0.20)),
    "tile": _tiles((0.82, 0.82, 0.80)),
    "tile_dark": _tiles((0.45, 0.49, 0.53)),
    "checker": _checker,
    "carpet_gray": _carpet((0.54, 0.54, 0.57)),
    "carpet_beige": _carpet((0.73, 0.65, 0.53)),
    "plaster": _plaster,
    "stripes": _stripes,
    "bricks": _bricks,
    "wood": _wood,
    "fabric": _fabric,
    "rug": _rug,
    "picture": _picture,
    "books": _books,
    "window": _window,
}

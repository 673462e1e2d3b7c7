# SPDX-License-Identifier: Apache-2.0
"""How a scene looks to the camera: light, tints, textures, mounting; drawn at random to train."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.sim.layout import FLOOR_TEXTURES, WALL_TEXTURES
from nvila_ros.sim.scene import Room

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Appearance:
    """What the picture shows beyond the scene; a colour keeps its name in all of them."""

    seed: int = 0  # of the tints and textures below
    light_intensity: float = 1.0
    light_rgb: RGB = (1.0, 1.0, 1.0)
    ambient_share: float = 0.55  # of the light that has no direction
    light_azimuth_rad: float = 0.6  # direction in which the ceiling light leans
    tint_jitter: float = 0.0  # 0 keeps the nominal colours, 1 is the full training range
    retexture: bool = False  # other walls and floors than the scene names
    camera_height_m: float = 1.18
    hfov_rad: float = math.radians(90)
    pitch_rad: float = 0.0  # positive looks up

    @classmethod
    def default(cls) -> Appearance:
        """Neutral light, nominal colours, level camera."""
        return cls()

    @classmethod
    def random(cls, rng: np.random.Generator) -> Appearance:
        """A draw from the training distribution."""
        return cls(
            seed=int(rng.integers(2**31)),
            light_intensity=float(rng.uniform(0.82, 1.12)),
            light_rgb=_rgb(rng.uniform(0.96, 1.04, 3)),
            ambient_share=float(rng.uniform(0.45, 0.65)),
            light_azimuth_rad=float(rng.uniform(-math.pi, math.pi)),
            tint_jitter=1.0,
            retexture=bool(rng.random() < 0.5),
            camera_height_m=float(rng.uniform(1.08, 1.28)),
            hfov_rad=math.radians(rng.uniform(85, 95)),
            pitch_rad=math.radians(rng.uniform(-3, 3)),
        )

    def tint(self, rgb: RGB, key: str) -> RGB:
        """The colour of one thing: shifted a little, the same way for the same key."""
        if self.tint_jitter == 0:
            return _rgb(rgb)
        rng = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
        hue_shift, saturation_gain, value_gain = self.tint_jitter * rng.uniform(
            [-0.012, -0.10, -0.12], [0.012, 0.06, 0.10]
        )
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(
            (hue + hue_shift) % 1.0,
            min(1.0, saturation * (1 + saturation_gain)),
            min(1.0, value * (1 + value_gain)),
        )

    def wall_texture(self, room: Room) -> str:
        """The room's own texture, or another when retexturing."""
        return self._choose(room.wall_texture, WALL_TEXTURES, room.id, "wall")

    def floor_texture(self, room: Room) -> str:
        """The room's own texture, or another when retexturing."""
        return self._choose(room.floor_texture, FLOOR_TEXTURES, room.id, "floor")

    def _choose(self, own: str, choices: tuple[str, ...], room_id: int, what: str) -> str:
        if not self.retexture:
            return own
        rng = np.random.default_rng([self.seed, room_id, zlib.crc32(what.encode())])
        return str(rng.choice(choices))


def _rgb(values: Sequence[float] | np.ndarray) -> RGB:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

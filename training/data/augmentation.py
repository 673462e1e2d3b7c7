# SPDX-License-Identifier: Apache-2.0
"""Another camera, another light: frames of a sample changed alike, by a seed and its key.

A robot's camera never sits as the training one did: a little roll, pitch, height and another field
of view are one warp of the picture plane; light, colour, blur and JPEG follow. One draw holds for
all frames of a sample, since they come from one camera; noise differs between them.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from nvila_ros.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Largest changes; each is drawn evenly from minus to plus its value. 0 turns one off."""

    brightness: float = 0.2  # of the value
    contrast: float = 0.2
    saturation: float = 0.2
    colour_balance: float = 0.06  # per channel: white balance
    gamma: float = 0.15
    noise: float = 2.0  # standard deviation in byte values, drawn from 0 to this
    roll_deg: float = 3.0
    pitch_deg: float = 3.0
    height_share: float = 0.06  # of the camera's height: the floor plane moves by it
    field_of_view_deg: float = 6.0
    camera_field_of_view_deg: float = 90.0  # horizontal, of the pictures as they are
    blur_px: float = 2.5  # length of the motion blur, drawn from 0 to this
    blur_share: float = 0.3  # of samples that are blurred
    jpeg_quality: tuple[int, int] = (40, 95)
    jpeg_share: float = 0.5  # of samples that are compressed
    share: float = 0.9  # of samples that are changed at all

    def __post_init__(self) -> None:
        for name in ("blur_share", "jpeg_share", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a share in [0, 1] is expected")
        narrowest = self.camera_field_of_view_deg - self.field_of_view_deg
        if narrowest < 20:
            raise ConfigError("field_of_view_deg leaves less than 20 degrees of view")
        if self.camera_field_of_view_deg + self.field_of_view_deg > 150:
            raise ConfigError("field_of_view_deg asks for more than 150 degrees of view")
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ConfigError(f"jpeg_quality is {self.jpeg_quality}; 1 <= low <= high <= 100")


class Augmentation:
    """Callable for `encode`: pictures and key -> changed pictures of the same sizes."""

    def __init__(self, config: AugmentationConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed

    @classmethod
    def maybe(cls, config: AugmentationConfig | None, seed: int) -> Augmentation | None:
        """None where nothing is to change."""
        return None if config is None else cls(config, seed)

    def __call__(self, pictures: list[Image.Image], key: str) -> list[Image.Image]:
        """All black pictures, which pad short histories, stay as they are."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        rng = np.random.default_rng([self.seed, 15, int.from_bytes(digest, "little")])
        if rng.random() >= self.config.share:
            return pictures
        draw = _Draw(self.config, rng)
        return [
            picture
            if picture.getbbox() is None
            else Image.fromarray(draw.apply(np.asarray(picture), rng))
            for picture in pictures
        ]


class _Draw:
    """One camera and one light."""

    def __init__(self, config: AugmentationConfig, rng: np.random.Generator) -> None:
        def around(size: float) -> float:
            return float(rng.uniform(-size, size)) if size else 0.0

        self.config = config
        self.gain = 1.0 + around(config.contrast)
        self.shift = 255.0 * 0.5 * around(config.brightness)
        self.saturation = 1.0 + around(config.saturation)
        self.balance = np.array([1.0 + around(config.colour_balance) for _ in range(3)])
        self.gamma = math.exp(around(config.gamma))
        self.noise = float(rng.uniform(0.0, config.noise)) if config.noise else 0.0
        self.roll_rad = math.radians(around(config.roll_deg))
        self.pitch_rad = math.radians(around(config.pitch_deg))
        self.height = around(config.height_share)
        self.wider_deg = around(config.field_of_view_deg)
        blurs = rng.random() < config.blur_share
        self.blur_px = float(rng.uniform(0.0, config.blur_px)) if blurs else 0.0
        compresses = rng.random() < config.jpeg_share
        low, high = config.jpeg_quality
        self.quality = int(rng.integers(low, high + 1)) if compresses else None

    def apply(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W, 3) uint8."""
        height, width = picture.shape[:2]
        matrix = camera_warp(
            width,
            height,
            math.radians(self.config.camera_field_of_view_deg),
            roll_rad=self.roll_rad,
            pitch_rad=self.pitch_rad,
            height_share=self.height,
            field_of_view_rad=math.radians(self.config.camera_field_of_view_deg + self.wider_deg),
        )
        values = cv2.warpPerspective(
            picture,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        ).astype(np.float32)
        if self.blur_px >= 1.0:
            values = _motion_blur(values, self.blur_px)
        grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
        values = grey[..., None] + (values - grey[..., None]) * self.saturation
        values = (values - 127.5) * self.gain * self.balance + 127.5 + self.shift
        values = 255.0 * (np.clip(values, 0.0, 255.0) / 255.0) ** self.gamma
        if self.noise:
            values += rng.normal(0.0, self.noise, values.shape)
        result = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return result if self.quality is None else _compressed(result, self.quality)


def camera_warp(
    width_px: int,
    height_px: int,
    camera_field_of_view_rad: float,
    *,
    roll_rad: float = 0.0,
    pitch_rad: float = 0.0,
    height_share: float = 0.0,
    field_of_view_rad: float | None = None,
) -> np.ndarray:
    """(3, 3) from pixels of the new camera to pixels of the old one.

    Rotation and focal length are exact for any scene (a pure homography, K_old R inv(K_new)).
    Another height is exact for the floor alone: a floor point's tangent of depression is height
    over distance, so rows are stretched from the horizon by the ratio of heights; above it the
    same stretch stands in for what cannot be known. Of the new camera, pitch up and roll
    counter-clockwise (seen from behind it) are positive.
    """
    focal_old = 0.5 * width_px / math.tan(0.5 * camera_field_of_view_rad)
    new_view = camera_field_of_view_rad if field_of_view_rad is None else field_of_view_rad
    focal_new = 0.5 * width_px / math.tan(0.5 * new_view)
    centre = np.array([0.5 * (width_px - 1), 0.5 * (height_px - 1)])

    def intrinsics(focal: float) -> np.ndarray:
        return np.array([[focal, 0.0, centre[0]], [0.0, focal, centre[1]], [0.0, 0.0, 1.0]])

    # Axes of a camera: x right, y down, z ahead.
    cos_p, sin_p = math.cos(pitch_rad), math.sin(pitch_rad)
    cos_r, sin_r = math.cos(roll_rad), math.sin(roll_rad)
    pitch = np.array([[1.0, 0.0, 0.0], [0.0, cos_p, -sin_p], [0.0, sin_p, cos_p]])
    roll = np.array([[cos_r, sin_r, 0.0], [-sin_r, cos_r, 0.0], [0.0, 0.0, 1.0]])
    stretch = np.diag([1.0, 1.0 / (1.0 + height_share), 1.0])
    return intrinsics(focal_old) @ stretch @ pitch @ roll @ np.linalg.inv(intrinsics(focal_new))


def _motion_blur(values: np.ndarray, length_px: float) -> np.ndarray:
    """A turning robot smears sideways; the ends of the smear count in part."""
    half = length_px / 2.0
    reach = math.ceil(half)
    offsets = np.arange(-reach, reach + 1)
    weights = np.clip(half + 0.5 - np.abs(offsets), 0.0, 1.0)
    kernel = (weights / weights.sum()).astype(np.float32).reshape(1, -1)
    return cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))

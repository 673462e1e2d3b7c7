# SPDX-License-Identifier: Apache-2.0
"""Frames and pictures to the square tiles that the vision tower reads, bit for bit as by PIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvila_ros.errors import ImageError
from nvila_ros.models.config import NvilaConfig

# Each byte's value in the network: x / 255, minus 0.5, over 0.5, in the roundings of the reference.
_PIXEL_VALUES = (
    ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
).astype(np.float32)
_PAD_GREY = (127, 127, 127)  # the mean 0.5 as a byte


@dataclass(frozen=True)
class Tiles:
    """The tiles of a prompt's images, in order."""

    pixels: Tensor  # (N, 3, S, S) float32 in [-1, 1]
    tiles_per_image: tuple[int, ...]
    block: tuple[int, int] | None = (
        None  # rows and columns of the largest scale, only for dynamic_s2
    )


def to_image(frame: Image.Image | np.ndarray) -> Image.Image:
    """An RGB picture from a PIL image or a (H, W, 3) uint8 array; alpha is dropped."""
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ImageError(
                f"got an image of shape {frame.shape} {frame.dtype}; "
                "(H, W, 3) uint8 RGB is expected"
            )
        if 0 in frame.shape:
            raise ImageError(f"got an empty image of shape {frame.shape}")
        return Image.fromarray(frame)
    if 0 in frame.size:
        raise ImageError(f"got an empty image of size {frame.size}")
    return frame.convert("RGB")


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Square RGB pictures of one size -> (N, 3, S, S) float32 in [-1, 1]."""
    bytes_ = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    # Turned as bytes and looked up in order: seven times faster than the other way round.
    return torch.from_numpy(np.take(_PIXEL_VALUES, np.ascontiguousarray(bytes_)))


def resize(image: Image.Image, side_px: int) -> Image.Image:
    """To a square, whatever the aspect, with PIL's antialiased bicubic filter."""
    return (
        image
        if image.size == (side_px, side_px)
        else image.resize((side_px, side_px), Image.Resampling.BICUBIC)
    )


def pad_to_square(image: Image.Image) -> Image.Image:
    """Centre the picture on a grey square of its longer side."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), _PAD_GREY)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def frame_pixels(frame: Image.Image | np.ndarray, config: NvilaConfig) -> Tensor:
    """One camera frame -> (3, S, S) float32 in [-1, 1]: one tile, as every video frame."""
    image = to_image(frame)
    if config.image_aspect_ratio == "pad":
        image = pad_to_square(image)
    return to_pixels([resize(image, config.vision.image_size)])[0]


def video_pixels(frame: Image.Image | np.ndarray, config: NvilaConfig) -> Tensor:
    """One frame of a video -> (N, 3, S, S): one tile, or several with `video_max_tiles` above 1.

    Each tile is then a frame of its own, those of dynamic_s2's smaller scales too.
    """
    if config.video_max_tiles > 1 and config.image_aspect_ratio == "dynamic":
        side = config.vision.image_size
        most = config.video_max_tiles
        return to_pixels(dynamic_tiles(to_image(frame), side, config.min_tiles, most))
    if config.video_max_tiles > 1 and config.image_aspect_ratio == "dynamic_s2":
        # The reference takes the pictures' max_tiles here.
        return to_pixels(dynamic_s2_tiles(to_image(frame), config.s2_scales, config.max_tiles)[0])
    return frame_pixels(frame, config).unsqueeze(0)


def image_tiles(frames: Sequence[Image.Image | np.ndarray], config: NvilaConfig) -> Tiles:
    """The pictures of one prompt; a picture that is alone may be cut into many tiles."""
    side = config.vision.image_size
    if len(frames) == 1 and config.image_aspect_ratio == "dynamic":
        tiles = dynamic_tiles(to_image(frames[0]), side, config.min_tiles, config.max_tiles)
        return Tiles(to_pixels(tiles), (len(tiles),))
    if len(frames) == 1 and config.image_aspect_ratio == "dynamic_s2":
        tiles, block = dynamic_s2_tiles(to_image(frames[0]), config.s2_scales, config.max_tiles)
        return Tiles(to_pixels(tiles), (len(tiles),), block)
    pixels = [frame_pixels(frame, config) for frame in frames]
    empty = torch.empty(0, 3, side, side)
    return Tiles(torch.stack(pixels) if pixels else empty, (1,) * len(pixels))


def closest_grid(
    size_px: tuple[int, int], min_tiles: int, max_tiles: int, side_px: int
) -> tuple[int, int]:
    """(columns, rows) of tiles whose aspect is nearest to the picture's.

    Among equally near grids the larger one is taken where the picture fills more than half of it.
    """
    width, height = size_px
    # Grids of one size keep the set's order, as in the reference: it decides the rare exact ties.
    grids = sorted(
        {
            (columns, rows)
            for count in range(min_tiles, max_tiles + 1)
            for columns in range(1, count + 1)
            for rows in range(1, count + 1)
            if min_tiles <= columns * rows <= max_tiles
        },
        key=lambda grid: grid[0] * grid[1],
    )
    best, best_difference = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * side_px * side_px * columns * rows
        if difference < best_difference or (difference == best_difference and is_filled):
            best, best_difference = (columns, rows), difference
    return best


def cut(image: Image.Image, columns: int, rows: int, side_px: int) -> list[Image.Image]:
    """Resize to the grid and cut it into squares, row by row."""
    grid = image.resize((columns * side_px, rows * side_px))
    return [
        grid.crop((column * side_px, row * side_px, (column + 1) * side_px, (row + 1) * side_px))
        for row in range(rows)
        for column in range(columns)
    ]


def dynamic_tiles(
    image: Image.Image, side_px: int, min_tiles: int, max_tiles: int
) -> list[Image.Image]:
    """NVILA-Lite: the grid of the nearest aspect, then a thumbnail unless it is one tile."""
    columns, rows = closest_grid(image.size, min_tiles, max_tiles, side_px)
    tiles = cut(image, columns, rows, side_px)
    return tiles if len(tiles) == 1 else [*tiles, image.resize((side_px, side_px))]


def dynamic_s2_tiles(
    image: Image.Image, scales_px: Sequence[int], max_tiles: int
) -> tuple[list[Image.Image], tuple[int, int]]:
    """NVILA: a square grid per smaller scale, then the largest one's, which keeps the aspect.

    Returns the tiles, smallest scale first, and (rows, columns) of the largest scale.
    """
    side_px = scales_px[0]
    tiles: list[Image.Image] = []
    for scale in scales_px[:-1]:
        per_side = scale // side_px
        tiles += cut(image, per_side, per_side, side_px)
    columns, rows = closest_grid(image.size, (scales_px[-1] // side_px) ** 2, max_tiles, side_px)
    return tiles + cut(image, columns, rows, side_px), (rows, columns)

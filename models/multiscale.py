# SPDX-License-Identifier: Apache-2.0
"""Dynamic-S2: features of a picture's tiles at several scales become one raster of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def stitch(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """(rows * columns, P, C) tiles in row-major order -> (rows * side, columns * side, C) map."""
    side = math.isqrt(tiles.shape[1])
    grid = tiles.reshape(rows, columns, side, side, -1).transpose(1, 2)
    return grid.reshape(rows * side, columns * side, -1)


def split(raster: Tensor, rows: int, columns: int) -> Tensor:
    """The reverse of `stitch`."""
    height, width, channels = raster.shape
    grid = raster.reshape(rows, height // rows, columns, width // columns, channels)
    return grid.transpose(1, 2).reshape(rows * columns, -1, channels)


def merge_scales(
    features: Tensor, scales_px: Sequence[int], block: tuple[int, int], output_scale: int
) -> tuple[Tensor, tuple[int, int]]:
    """Tiles of all scales, smallest first (N, P, C) -> tiles of one scale (n, P, scales * C).

    Every scale is stitched to a map, resized to the output scale's map and stacked on the channels.
    Also returns the (rows, columns) of the output scale.
    """
    blocks = [(scale // scales_px[0], scale // scales_px[0]) for scale in scales_px[:-1]] + [block]
    counts = [rows * columns for rows, columns in blocks]
    assert len(features) == sum(counts), f"{len(features)} tiles, {sum(counts)} expected"
    maps = [
        stitch(tiles, *shape) for tiles, shape in zip(features.split(counts), blocks, strict=True)
    ]
    size = maps[output_scale].shape[:2]
    resized = [
        F.interpolate(raster.permute(2, 0, 1).unsqueeze(0).float(), size=size, mode="area")
        for raster in maps
    ]
    stacked = torch.cat(resized, dim=1)[0].permute(1, 2, 0).to(features.dtype)
    rows, columns = blocks[output_scale]
    return split(stacked, rows, columns), (rows, columns)


def project_scales(
    features: Tensor,
    projector: Callable[[Tensor], Tensor],
    scales_px: Sequence[int],
    block: tuple[int, int],
    output_scale: int,
) -> Tensor:
    """The tower's tiles of one picture (N, P, C) -> its tokens (T, D), row by row."""
    merged, (rows, columns) = merge_scales(features, scales_px, block, output_scale)
    return stitch(projector(merged), rows, columns).flatten(0, 1)

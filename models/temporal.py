# SPDX-License-Identifier: Apache-2.0
"""Video in the network: pooling over time and space (TSP), and the tokens that name a time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError
from nvila_ros.models.config import NvilaConfig

PoolSize = tuple[int, int, int]  # frames, rows, columns whose mean is one token


def pool_frames(features: Tensor, pool_size: PoolSize) -> Tensor:
    """(F, T, D) frames of square token grids -> (F / frames, T / (rows * columns), D) means.

    The mean is taken over frames, then rows, then columns, in the order of the reference.
    """
    num_tokens = features.shape[1]
    side = math.isqrt(num_tokens)
    assert side * side == num_tokens, f"{num_tokens} tokens are no square grid"
    grid = features.unflatten(1, (side, side))  # (F, rows, columns, D)
    for axis, (size, name) in enumerate(zip(pool_size, ("frames", "rows", "columns"), strict=True)):
        length = grid.shape[axis]
        if size < 1 or length % size:
            raise ConfigError(
                f"{length} {name} cannot be pooled by {size}; show a multiple of {size}"
                if axis == 0
                else f"pool size {list(pool_size)} does not divide a grid of {side} x {side} tokens"
            )
        grid = grid.unflatten(axis, (length // size, size)).mean(axis + 1)
    return grid.flatten(1, 2)


def video_block(features: Tensor, newline: Tensor, pool_sizes: Sequence[PoolSize] = ()) -> Tensor:
    """(F, T, D) features of a video's frames -> its one block of embeddings (N, D).

    Every frame, or pooled frame, is followed by `newline` (k, D) except the last: `Nvila.embed`
    ends each block with one. Several pool sizes stand one after another.
    """
    pieces: list[Tensor] = []
    for pooled in [pool_frames(features, size) for size in pool_sizes] or [features]:
        for frame in pooled:
            pieces += [frame, newline.to(frame.dtype)]
    return torch.cat(pieces[:-1])


def frames_multiple(config: NvilaConfig) -> int:
    """The number of frames that a video must be a multiple of."""
    return math.lcm(*(size[0] for size in config.video_pool_sizes))


def time_pattern(config: NvilaConfig) -> re.Pattern[str] | None:
    """What the time tokens of a checkpoint look like in text; None where it has none."""
    if config.num_time_tokens < 1:
        return None
    return re.compile(re.escape(config.time_token_format).replace(re.escape("{t}"), r"(\d+)"))


def times_in(text: str, config: NvilaConfig, duration_s: float) -> dict[str, float]:
    """The time tokens in an answer -> seconds from the start of the video, in order.

    A number beyond the last time token means the end, as in the reference.
    """
    pattern = time_pattern(config)
    last = max(config.num_time_tokens - 1, 1)
    return {
        match.group(): min(int(match.group(1)), last) / last * duration_s
        for match in (pattern.finditer(text) if pattern else ())
    }

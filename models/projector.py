# SPDX-License-Identifier: Apache-2.0
"""The projector: folds blocks of patches into channels and maps them to the decoder's width."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from nvila_ros.models.config import NvilaConfig


class SpaceToChannel(nn.Module):
    """Folds every rate x rate block of patches into one token.

    A block's channels are ordered (row in block, column in block, channel). Grids that do not
    divide are padded with zeros at the bottom and right, before the projector's first norm.
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, patches: Tensor) -> Tensor:
        """(F, P, C) row-major square grid -> (F, T, rate * rate * C)."""
        frames, num_patches, channels = patches.shape
        side = math.isqrt(num_patches)
        assert side * side == num_patches, f"{num_patches} patches are no square grid"
        grid = patches.reshape(frames, side, side, channels)
        missing = -side % self.rate
        if missing:
            grid = F.pad(grid, (0, 0, 0, missing, 0, missing))
        tokens = (side + missing) // self.rate
        blocks = grid.reshape(frames, tokens, self.rate, tokens, self.rate, channels)
        return blocks.permute(0, 1, 3, 2, 4, 5).reshape(frames, tokens * tokens, -1)


class Projector(nn.Module):
    """NVILA's MLP projector; `layers` is indexed as in `mm_projector/`."""

    def __init__(self, config: NvilaConfig) -> None:
        super().__init__()
        channels = config.mm_hidden_size
        width = config.language.hidden_size
        rate = config.downsample_rate
        folded = rate * rate * channels
        if rate == 2:
            stages = [nn.LayerNorm(folded), nn.Linear(folded, width)]
        else:
            stages = [
                nn.LayerNorm(folded),
                nn.Linear(folded, rate * channels),
                nn.GELU(),
                nn.LayerNorm(rate * channels),
                nn.Linear(rate * channels, width),
            ]
        self.layers = nn.Sequential(
            SpaceToChannel(rate), *stages, nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(F, P, C) -> (F, T, D)."""
        return self.layers(patches)

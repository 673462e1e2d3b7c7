# SPDX-License-Identifier: Apache-2.0
"""The projector: folds blocks of patches into channels and maps them to the decoder's width."""

from __future__ import annotations

import itertools
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


def _narrowing(projector_type: str, channels: int) -> list[int]:
    """Widths between the folded patches and the decoder's, by projector type."""
    return {
        "mlp_downsample": [],
        "mlp_downsample_2x2_fix": [],
        "mlp_downsample_3x3_fix": [3 * channels],
        "mlp_downsample_3x3_s2": [3 * channels, channels, channels // 3],
        "mlp_downsample_3x3_s2_new": [4 * channels, 2 * channels, channels, channels // 3],
    }[projector_type]


class Projector(nn.Module):
    """NVILA's MLP projector; `layers` is indexed as in `mm_projector/`.

    A norm, a linear layer and a GELU per width, then one more linear layer.
    """

    def __init__(self, config: NvilaConfig) -> None:
        super().__init__()
        channels = config.mm_hidden_size
        width = config.language.hidden_size
        rate = config.downsample_rate
        widths = [rate * rate * channels, *_narrowing(config.mm_projector_type, channels), width]
        stages: list[nn.Module] = [SpaceToChannel(rate)]
        for wide, narrow in itertools.pairwise(widths):
            stages += [nn.LayerNorm(wide), nn.Linear(wide, narrow), nn.GELU()]
        self.layers = nn.Sequential(*stages, nn.Linear(width, width))

    def forward(self, patches: Tensor) -> Tensor:
        """(F, P, C) -> (F, T, D)."""
        return self.layers(patches)

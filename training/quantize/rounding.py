# SPDX-License-Identifier: Apache-2.0
"""Rounds float weights: int4 codes with scales and zero points per group, int8 codes per output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels import packing
from nvila_ros.kernels.packing import Int4Weight
from nvila_ros.kernels.reference import quantize_per_token

GROUP = 128
LARGEST_CODE = 15
SMALLEST_SCALE = 2.0**-20  # of an empty group; float16 still tells it from zero
DAMPING = 0.01  # of the mean second moment: channels that are never used have an inverse too
ROWS_PER_STEP = 2048  # bounds the copies of a wide layer
SHRINKS = tuple(1.0 - step / 20 for step in range(11))  # 1.0 to 0.5 of a group's range

# Letters: N outputs, K inputs, G groups of one output, g inputs of a group.


def group_ranges(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> the lowest and the highest weight of each group (N, G); both sides hold zero."""
    groups = weight.unflatten(1, (-1, GROUP))
    return groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)


def codes_of(weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K), ranges (N, G) -> codes (N, G, g) and zero points (N, G), float, scales (N, G) half.

    q = clamp(round(w / s) + z, 0, 15), s = (high - low) / 15 in float16, z = round(-low / s).
    """
    scales = ((high - low) / LARGEST_CODE).clamp(min=SMALLEST_SCALE).half()
    steps = scales.float()
    zeros = (-low / steps).round_().clamp_(0, LARGEST_CODE)
    codes = weight.unflatten(1, (-1, GROUP)) / steps.unsqueeze(-1)
    codes.round_().add_(zeros.unsqueeze(-1)).clamp_(0, LARGEST_CODE)
    return codes, zeros, scales


def rounded(weight: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """(N, K) float32 -> the weight that its codes stand for; by default over each group's range."""
    if low is None or high is None:
        low, high = group_ranges(weight)
    codes, zeros, scales = codes_of(weight, low, high)
    return codes.sub_(zeros.unsqueeze(-1)).mul_(scales.float().unsqueeze(-1)).flatten(1)


def to_int4(weight: Tensor, low: Tensor, high: Tensor) -> Int4Weight:
    """(N, K) float32 and ranges (N, G) -> codes as the engine and checkpoints take them."""
    codes, zeros, scales = codes_of(weight, low, high)
    return Int4Weight(
        qweight=packing.pack(codes.flatten(1).to(torch.uint8)),
        zeros=zeros.to(torch.uint8),
        scales=scales,
    )


def best_ranges(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Shrink each group's range where that brings its outputs closer (AWQ's weight clipping).

    `gram` (G, g, g) is the second moment of the group's inputs, so that the error of one output is
    d gram d for the weight's error d: exact for all tokens that were seen, without keeping them.
    """
    lows, highs = [], []
    for rows in weight.split(ROWS_PER_STEP):
        low, high = group_ranges(rows)
        best = torch.full_like(low, torch.inf)
        best_low, best_high = low.clone(), high.clone()
        for shrink in SHRINKS:
            difference = rounded(rows, low * shrink, high * shrink).sub_(rows)
            groups = difference.unflatten(1, (-1, GROUP)).transpose(0, 1)  # (G, n, g)
            error = (groups @ gram).mul_(groups).sum(-1).t()  # (n, G)
            is_better = error < best
            best = torch.where(is_better, error, best)
            best_low = torch.where(is_better, low * shrink, best_low)
            best_high = torch.where(is_better, high * shrink, best_high)
        lows.append(best_low)
        highs.append(best_high)
    return torch.cat(lows), torch.cat(highs)


def inverse_factor(gram: Tensor) -> Tensor:
    """(K, K) second moment of the inputs -> upper Cholesky factor of its inverse, float32."""
    damped = gram.double()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp(min=1e-12))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def compensated(
    weight: Tensor, factor: Tensor, gram: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Round column by column; the columns to come make up for the error so far (GPTQ).

    (N, K) float32, `inverse_factor` (K, K), group moments (G, g, g) or None to leave ranges
    unclipped -> the weight that its codes stand for (N, K) and the ranges (N, G) of its groups.
    """
    left, done = weight.clone(), torch.empty_like(weight)
    lows, highs = [], []
    for begin in range(0, weight.shape[1], GROUP):
        group = slice(begin, begin + GROUP)
        columns, inner = left[:, group].clone(), factor[group, group]
        low, high = group_ranges(columns)
        if gram is not None:
            low, high = best_ranges(columns, gram[begin // GROUP].unsqueeze(0))
        errors = torch.empty_like(columns)
        for place in range(GROUP):
            column = columns[:, place]
            codes, zeros, scales = _codes_of_column(column, low[:, 0], high[:, 0])
            done[:, begin + place] = (codes - zeros) * scales
            errors[:, place] = (column - done[:, begin + place]) / inner[place, place]
            columns[:, place:] -= errors[:, place, None] * inner[place, place:]
        left[:, begin + GROUP :] -= errors @ factor[group, begin + GROUP :]
        lows.append(low)
        highs.append(high)
    return done, torch.cat(lows, dim=1), torch.cat(highs, dim=1)


def _codes_of_column(column: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) each -> codes, zero points and scales (N,), float; as `codes_of`."""
    scales = ((high - low) / LARGEST_CODE).clamp(min=SMALLEST_SCALE).half().float()
    zeros = (-low / scales).round_().clamp_(0, LARGEST_CODE)
    return (column / scales).round_().add_(zeros).clamp_(0, LARGEST_CODE), zeros, scales


def w8a8(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K) float32 -> (..., N): what an int8 linear would answer, in float arithmetic."""
    codes, scales = quantize_per_token(inputs)
    rows, row_scales = quantize_per_token(weight)
    exact = F.linear(codes.float(), rows.float()) * scales.unsqueeze(-1) * row_scales
    return exact if bias is None else exact + bias

# SPDX-License-Identifier: Apache-2.0
"""The slow twin of the vision tower's fast path: the same int8 codes, the rest in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels import reference
from nvila_ros.kernels.vision import Int8Linear, VisionBlockWeights, VisionWeights

Quantized = tuple[Tensor, Tensor]  # codes (M, K) int8, scales (M,) float32


def encode(weights: VisionWeights, pixels: Tensor) -> Tensor:
    """(F, 3, S, S) float in [-1, 1] -> (F, P, D) float32: the last layer's output, no norm."""
    frames, channels, _, _ = pixels.shape
    size = weights.patch_size
    inputs = channels * size * size
    kernel = weights.patch_weight[:, :inputs].float().view(-1, channels, size, size)
    patches = F.conv2d(pixels.float(), kernel, weights.patch_bias.float(), stride=size)
    hidden = patches.flatten(2).transpose(1, 2) + weights.positions.float()  # (F, P, D)
    rows = hidden.flatten(0, 1)
    for block in weights.blocks:
        rows = _block(rows, block, frames, weights.num_heads, weights.eps)
    return rows.view(frames, -1, rows.shape[1])


def _block(
    rows: Tensor, block: VisionBlockWeights, frames: int, num_heads: int, eps: float
) -> Tensor:
    """(F * P, D) float32 -> the same."""
    normed = reference.layer_norm_quantize(rows, block.norm1_weight, block.norm1_bias, eps)
    mixed = attention(_linear(normed, block.qkv).view(frames, -1, 3 * rows.shape[1]), num_heads)
    rows = _linear(reference.quantize_per_token(mixed.flatten(0, 1)), block.out, rows)
    normed = reference.layer_norm_quantize(rows, block.norm2_weight, block.norm2_bias, eps)
    return _linear(reference.gelu_quantize(_linear(normed, block.fc1)), block.fc2, rows)


def _linear(inputs: Quantized, layer: Int8Linear, residual: Tensor | None = None) -> Tensor:
    codes, scales = inputs
    weight, weight_scale, bias = layer.weight, layer.weight_scale, layer.bias
    return reference.w8a8_matmul(
        codes, scales, weight, weight_scale, bias, residual, dtype=torch.float32
    )


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """(F, P, 3 * heads * d) -> (F, P, heads * d): softmax(q k^T / sqrt(d)) v per frame and head."""
    split = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)  # (F, heads, P, d)
    weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)

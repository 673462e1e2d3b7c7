# SPDX-License-Identifier: Apache-2.0
"""The slow twin of the vision tower's fast path: the same int8 codes, sums in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels import reference
from nvila_ros.kernels.vision import Int8Linear, VisionBlockWeights, VisionWeights

Quantized = tuple[Tensor, Tensor]  # codes (M, K) int8, scales (M,) float32


def encode(
    weights: VisionWeights,
    pixels: Tensor,
    inner_block: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(F, 3, S, S) float in [-1, 1] -> (F, P, D) float32: the last layer's output, no norm.

    inner_block: columns of the MLP's inner values that share a scale; None: whole rows
    dtype: what is kept between two kernels (float16 on a GPU); sums are float32
    """
    frames, channels, _, _ = pixels.shape
    size = weights.patch_size
    inputs = channels * size * size
    kernel = weights.patch_weight[:, :inputs].float().view(-1, channels, size, size)
    patches = F.conv2d(pixels.float(), kernel, weights.patch_bias.float(), stride=size)
    patches = patches.to(dtype).flatten(2).transpose(1, 2)
    hidden = patches.float() + weights.positions.float()  # (F, P, D)
    rows = hidden.flatten(0, 1).to(dtype)
    for block in weights.blocks:
        rows = _block(rows, block, weights, frames, inner_block)
    return rows.view(frames, -1, rows.shape[1]).float()


def _block(
    rows: Tensor,
    block: VisionBlockWeights,
    weights: VisionWeights,
    frames: int,
    inner_block: int | None,
) -> Tensor:
    """(F * P, D) -> the same, in the same dtype."""
    norm1, norm2 = (block.norm1_weight, block.norm1_bias), (block.norm2_weight, block.norm2_bias)
    normed = reference.layer_norm_quantize(rows, *norm1, weights.eps)
    qkv = _linear(normed, block.qkv).to(rows.dtype).float()
    mixed = attention(qkv.view(frames, -1, qkv.shape[1]), weights.num_heads).to(rows.dtype)
    outputs = _linear(reference.quantize_per_token(mixed.flatten(0, 1)), block.out)
    rows = _add(rows, outputs)
    normed = reference.layer_norm_quantize(rows, *norm2, weights.eps)
    inner = F.gelu(_linear(normed, block.fc1), approximate="tanh").to(rows.dtype)
    if inner_block is None:
        return _add(rows, _linear(reference.quantize_per_token(inner), block.fc2))
    codes, scales = reference.quantize_blocks(inner, inner_block)
    dense = reference.dequantize_blocks(codes, scales, inner_block)
    columns = block.fc2.weight.float() * block.fc2.weight_scale[:, None]
    return _add(rows, dense @ columns.t() + block.fc2.bias.float())


def _add(rows: Tensor, outputs: Tensor) -> Tensor:
    """Rounded before it is added, and after."""
    return (rows.float() + outputs.to(rows.dtype).float()).to(rows.dtype)


def _linear(inputs: Quantized, layer: Int8Linear) -> Tensor:
    """Exact integer sums, scaled, plus bias: (M, N) float32."""
    codes, scales = inputs
    return reference.w8a8_matmul(
        codes, scales, layer.weight, layer.weight_scale, layer.bias, dtype=torch.float32
    )


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """(F, P, 3 * heads * d) -> (F, P, heads * d): softmax(q k^T / sqrt(d)) v per frame and head."""
    split = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)  # (F, heads, P, d)
    weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)

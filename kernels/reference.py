# SPDX-License-Identifier: Apache-2.0
"""The slow twin of every kernel: plain torch that says what a fast one has to answer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels.packing import unpack


def dequantize_int4(qweight: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """(N, K / 8) int32, (N, G) uint8, (N, G) float -> (N, K) in the dtype of the scales.

    w[n, k] = (code[n, k] - zeros[n, g]) * scales[n, g] with g = k // (K / G). The difference is
    an integer of -15..15, exact in every dtype; the product is rounded once.
    """
    codes = unpack(qweight).to(scales.dtype)
    groups = codes.unflatten(1, (scales.shape[1], -1))  # (N, G, group)
    groups.sub_(zeros.to(scales.dtype).unsqueeze(-1)).mul_(scales.unsqueeze(-1))
    return groups.flatten(1)


def w4a16(
    inputs: Tensor, qweight: Tensor, zeros: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(..., K) float -> (..., N): y = x W^T + b, W dequantized in the scales' dtype, then x's."""
    weight = dequantize_int4(qweight, zeros, scales)
    return F.linear(inputs, weight.to(inputs.dtype), bias)

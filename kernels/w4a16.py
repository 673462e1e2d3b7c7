# SPDX-License-Identifier: Apache-2.0
"""A linear layer that keeps its weight in four bits and multiplies in the activations' dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nvila_ros.kernels import reference
from nvila_ros.kernels.packing import CODES_PER_WORD, Int4Weight


class W4A16Linear(nn.Module):
    """`nn.Linear` with int4 codes, zero points and scales per group of inputs.

    Buffers: qweight (N, K / 8) int32, zeros (N, G) uint8, scales (N, G) float; `bias` (N,) or None.
    The dense weight exists for the time of one `forward` only.
    """

    qweight: Tensor
    zeros: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool, group_size: int) -> None:
        super().__init__()
        assert in_features % group_size == 0, f"{in_features} inputs, groups of {group_size}"
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        num_groups = in_features // group_size
        words = torch.zeros(out_features, in_features // CODES_PER_WORD, dtype=torch.int32)
        self.register_buffer("qweight", words)
        self.register_buffer("zeros", torch.zeros(out_features, num_groups, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(out_features, num_groups, dtype=torch.float16))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def int4_weight(self) -> Int4Weight:
        """The weight as checkpoints are read and written."""
        return Int4Weight(qweight=self.qweight, zeros=self.zeros, scales=self.scales)

    def dequantized(self) -> Tensor:
        """The dense weight (N, K) in the dtype of the scales."""
        return reference.dequantize_int4(self.qweight, self.zeros, self.scales)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., K) float -> (..., N)."""
        return reference.w4a16(inputs, self.qweight, self.zeros, self.scales, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, group_size={self.group_size}"
        )

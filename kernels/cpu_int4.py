# SPDX-License-Identifier: Apache-2.0
"""The int4 product on a CPU: a dense weight kept where that is small, else torch's int4 kernel.

Measured (docs/benchmarks/quantization_notes.md): torch's kernel multiplies in bfloat16 and wins by
bandwidth, so it is for large matrices; in float32 and float16 it is a slow loop and not exact
either. Small matrices lie in the cache anyway, and a dense product of them is faster than any
unpacking.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels.packing import Int4Weight, unpack
from nvila_ros.kernels.reference import dequantize_int4

MOST_DENSE_WEIGHTS = 2**21  # above it four bits are read faster than what they stand for
KERNEL_GROUPS = (32, 64, 128, 256)
KERNEL_ZERO = 8  # the code that stands for the kernel's zero point


@dataclass(frozen=True)
class CpuInt4:
    """One weight, ready for products on a CPU: `dense` (N, K), or torch's words and its scales."""

    num_outputs: int
    group_size: int
    dense: Tensor | None = None
    words: Tensor | None = None  # (N, K / 2) uint8, in the kernel's own order
    scales_and_zeros: Tensor | None = None  # (G, N, 2) bfloat16


def prepare(weight: Int4Weight, dtype: torch.dtype) -> CpuInt4:
    """For inputs of `dtype`: a small weight exactly as the twin has it, a large one in bfloat16."""
    num_outputs, num_groups = weight.zeros.shape
    num_inputs = weight.qweight.shape[1] * 8
    group_size = num_inputs // num_groups
    is_small = num_outputs * num_inputs <= MOST_DENSE_WEIGHTS
    if is_small or group_size not in KERNEL_GROUPS or num_outputs % 16 or not _has_kernel():
        dense = dequantize_int4(weight.qweight, weight.zeros, weight.scales)
        return CpuInt4(num_outputs, group_size, dense=dense.to(dtype))
    codes = unpack(weight.qweight).to(torch.int32)
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = weight.scales.float()
    offsets = (KERNEL_ZERO - weight.zeros.float()) * scales  # w = (q - 8) s + offset
    both = torch.stack((scales, offsets), dim=-1).transpose(0, 1)  # (G, N, 2)
    return CpuInt4(
        num_outputs,
        group_size,
        words=words,
        scales_and_zeros=both.to(torch.bfloat16).contiguous(),
    )


def linear(inputs: Tensor, weight: CpuInt4, bias: Tensor | None = None) -> Tensor:
    """(..., K) float -> (..., N) in the same dtype."""
    if weight.dense is not None:
        return F.linear(inputs, weight.dense, bias)
    assert weight.words is not None and weight.scales_and_zeros is not None
    rows = inputs.flatten(0, -2).to(torch.bfloat16)
    outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(
        rows, weight.words, weight.group_size, weight.scales_and_zeros
    ).to(inputs.dtype)
    if bias is not None:
        outputs += bias.to(outputs.dtype)
    return outputs.unflatten(0, inputs.shape[:-1])


def _has_kernel() -> bool:
    return hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu") and hasattr(
        torch.ops.aten, "_weight_int4pack_mm_for_cpu"
    )

# SPDX-License-Identifier: Apache-2.0
"""The int8 product on a CPU: quantizing in few passes, oneDNN's integer product, one epilogue."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from nvila_ros.kernels import reference
from nvila_ros.kernels.reference import INT8_LIMIT


def quantize_per_token(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """As the twin, bit for bit: (..., K) -> codes (..., K) int8, scales (...) float32."""
    values = inputs.float()
    limits = values.abs().amax(dim=-1, keepdim=True)
    factors = INT8_LIMIT / limits
    if not bool(factors.isfinite().all() & limits.isfinite().all()):
        return reference.quantize_per_token(inputs)  # rows of zeros, NaN or infinity
    codes = (values * factors).round_().to(torch.int8)
    return codes, limits.squeeze(-1) / INT8_LIMIT


def w8a8_matmul(
    codes: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """See `reference.w8a8_matmul`; the integer product is exact, the epilogue in float32."""
    if not is_exact():
        return reference.w8a8_matmul(codes, scales, weight, weight_scale, bias, residual, dtype)
    outputs = torch._int_mm(codes, weight.t()).float()
    outputs.mul_(scales[:, None]).mul_(weight_scale)
    if bias is not None:
        outputs.add_(bias)
    if residual is not None:
        outputs.add_(residual)
    return outputs.to(dtype)


@functools.cache
def is_exact() -> bool:
    """False where this processor's int8 product saturates at 16 bits, as x86 without VNNI may."""
    ones = torch.full((16, 256), INT8_LIMIT, dtype=torch.int8)
    for sign in (1, -1):
        product = torch._int_mm(ones, (sign * ones).t())
        if not bool((product == sign * 256 * INT8_LIMIT**2).all()):
            return False
    return True

# SPDX-License-Identifier: Apache-2.0
"""The int8 product on a CPU: quantizing in few passes, oneDNN's integer product, one epilogue."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from nvila_ros.kernels import reference
from nvila_ros.kernels.reference import INT8_LIMIT

TEMPORARY_NUMBERS = 2**18  # of four bytes each: they stay in the second cache
LEAST_ROWS = 288  # fewer do not fill oneDNN's product


def quantize_per_token(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """As the twin, bit for bit: (..., K) -> codes (..., K) int8, scales (...) float32."""
    values = inputs.float()
    limits = values.abs().amax(dim=-1, keepdim=True)
    factors = INT8_LIMIT / limits
    if not bool(factors.isfinite().all() & limits.isfinite().all()):
        return reference.quantize_per_token(inputs)  # rows of zeros, NaN or infinity
    codes = torch.empty(inputs.shape, dtype=torch.int8)
    rows, steps = values.flatten(0, -2), factors.flatten(0, -2)
    written = codes.view(rows.shape)
    for part in _parts(*rows.shape):
        written[part].copy_((rows[part] * steps[part]).round_())
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
    outputs = torch.empty(codes.shape[0], weight.shape[0])
    columns = weight.t()
    for part in _parts(*outputs.shape):
        rows = outputs[part]
        rows.copy_(torch._int_mm(codes[part], columns))
        rows.mul_(scales[part, None]).mul_(weight_scale)
        if bias is not None:
            rows.add_(bias)
        if residual is not None:
            rows.add_(residual[part])
    return outputs.to(dtype)


def _parts(num_rows: int, width: int) -> Iterator[slice]:
    """Rows a few at a time: larger temporaries are mapped anew for each product, page by page."""
    size = max(LEAST_ROWS, TEMPORARY_NUMBERS // max(1, width))
    for begin in range(0, num_rows, size):
        yield slice(begin, begin + size)


@functools.cache
def is_exact() -> bool:
    """False where this processor's int8 product saturates at 16 bits, as x86 without VNNI may."""
    ones = torch.full((16, 256), INT8_LIMIT, dtype=torch.int8)
    for sign in (1, -1):
        product = torch._int_mm(ones, (sign * ones).t())
        if not bool((product == sign * 256 * INT8_LIMIT**2).all()):
            return False
    return True

# SPDX-License-Identifier: Apache-2.0
"""A linear layer that keeps its weight in four bits and multiplies in the activations' dtype."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.kernels import build, cpu_int4, decode, reference
from nvila_ros.kernels.packing import (
    CODES_PER_WORD,
    ROWS_GROUP,
    Int4Weight,
    RowsInt4,
    from_rows,
    to_rows,
)
from nvila_ros.kernels.w4a16_gemm import w4a16_matmul

MOST_DECODE_ROWS = 8  # more rows are a prompt

log = logging.getLogger(__name__)


class W4A16Linear(nn.Module):
    """`nn.Linear` with int4 codes, zero points and scales per group of inputs.

    Buffers: qweight (N, K / 8) int32, zeros (N, G) uint8, scales (N, G) float; `bias` (N,) or None.
    In fp16 on a GPU the int4 kernels multiply, which put the words of `qweight` into their own
    order in place: read the weight through `int4_weight` or `state_dict`, which put it back.
    On a CPU, without gradients, `cpu_int4` keeps what is fastest there; elsewhere the dense weight
    exists for the time of one `forward`.
    """

    qweight: Tensor
    zeros: Tensor
    scales: Tensor
    scale_zero: Tensor | None

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
        self.register_buffer("scale_zero", None, persistent=False)  # of RowsInt4, once on a GPU
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._prepared: tuple[Any, cpu_int4.CpuInt4] | None = None

    @property
    def int4_weight(self) -> Int4Weight:
        """The weight as checkpoints are read and written."""
        words = self.qweight
        if self.scale_zero is not None:
            words = from_rows(RowsInt4(qweight=words, scale_zero=self.scale_zero)).qweight
        return Int4Weight(qweight=words, zeros=self.zeros, scales=self.scales)

    def dequantized(self) -> Tensor:
        """The dense weight (N, K) in the dtype of the scales."""
        weight = self.int4_weight
        return reference.dequantize_int4(weight.qweight, weight.zeros, weight.scales)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., K) float -> (..., N)."""
        if self._has_kernel(inputs):
            rows = inputs.reshape(-1, self.in_features)
            multiply = decode.w4a16_linear if len(rows) <= MOST_DECODE_ROWS else w4a16_matmul
            return multiply(rows, self._rows(), self.bias).unflatten(0, inputs.shape[:-1])
        if inputs.device.type == "cpu" and not torch.is_grad_enabled():
            return cpu_int4.linear(inputs, self._on_cpu(inputs.dtype), self.bias)
        weight = self.int4_weight
        return reference.w4a16(inputs, weight.qweight, weight.zeros, weight.scales, self.bias)

    def _has_kernel(self, inputs: Tensor) -> bool:
        is_plain = inputs.dtype == torch.float16 and not (
            torch.is_grad_enabled() and inputs.requires_grad
        )
        if not is_plain or not build.is_fast(inputs) or inputs.shape[:-1].numel() == 0:
            return False
        if self.group_size != ROWS_GROUP:
            _warn_of_groups(self.group_size)
        return self.group_size == ROWS_GROUP

    def _on_cpu(self, dtype: torch.dtype) -> cpu_int4.CpuInt4:
        """The weight ready for a CPU, made once for each dtype and set of buffers."""
        places = tuple(part.data_ptr() for part in (self.qweight, self.zeros, self.scales))
        key = (dtype, self.scales.dtype, places)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = (key, cpu_int4.prepare(self.int4_weight, dtype))
        return self._prepared[1]

    def _rows(self) -> RowsInt4:
        if self.scale_zero is None or self.scale_zero.dtype != torch.float16:
            rows = to_rows(self.int4_weight)
            self.qweight, self.scale_zero = rows.qweight, rows.scale_zero
        return RowsInt4(qweight=self.qweight, scale_zero=self.scale_zero)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}qweight"] = self.int4_weight.qweight

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._prepared = None
        if self.scale_zero is not None:
            self.qweight, self.scale_zero = self.int4_weight.qweight, None
        super()._load_from_state_dict(*arguments, **options)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, group_size={self.group_size}"
        )


_warned_groups: set[int] = set()


def _warn_of_groups(group_size: int) -> None:
    if group_size not in _warned_groups:
        _warned_groups.add(group_size)
        log.warning(
            "int4 groups of %d: the fast kernels read groups of %d, the slow path answers instead; "
            "quantize with group size %d",
            group_size,
            ROWS_GROUP,
            ROWS_GROUP,
        )

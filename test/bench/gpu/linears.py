# SPDX-License-Identifier: Apache-2.0
"""Each matrix of a Qwen2-7B layer on its own: our int4, torch's int4, cuBLAS fp16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from shapes import forget, random_rows
from timing import rotated_us
from torch import Tensor

from nvila_ros.kernels import decode
from nvila_ros.kernels.w4a16_gemm import w4a16_gate_up, w4a16_matmul

LAYER_SHAPES = {  # rows and inputs
    "qkv": (4608, 3584),
    "o": (3584, 3584),
    "gate_up": (37_888, 3584),
    "down": (3584, 18_944),
}
PROMPT_ROWS = 1088
ROTATED_BYTES = 300e6  # several times the second-level cache


def gemv(device: torch.device) -> dict[str, dict[str, float]]:
    """One row: what decoding multiplies."""
    return {name: _gemv(device, *shape) for name, shape in LAYER_SHAPES.items()}


def gemm(device: torch.device) -> dict[str, dict[str, float]]:
    """A prompt's rows, with both ways to sum."""
    return {name: _gemm(device, *shape) for name, shape in LAYER_SHAPES.items()}


@torch.inference_mode()
def _gemv(device: torch.device, outputs: int, inputs: int) -> dict[str, float]:
    x = torch.randn(1, inputs, device=device, dtype=torch.float16)
    x_bf16 = x.bfloat16()
    row: dict[str, Any] = {"rows": outputs, "inputs": inputs}
    weights = outputs * inputs
    count = max(2, round(ROTATED_BYTES / (weights / 2)))

    def dense() -> Tensor:
        return torch.randn(outputs, inputs, device=device, dtype=torch.float16)

    ways: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor], int, float]] = {
        "ours": (
            lambda: random_rows(outputs, inputs, device),
            lambda weight: decode.w4a16_linear(x, weight, None),
            count,
            _int4_bytes(weights),
        ),
        "torch_int4": (
            lambda: _torch_int4(outputs, inputs, device),
            lambda weight: torch._weight_int4pack_mm(x_bf16, weight[0], 128, weight[1]),
            count,
            _int4_bytes(weights),
        ),
        "cublas_fp16": (dense, lambda weight: x @ weight.t(), max(2, count // 4), 2.0 * weights),
    }
    for name, way in ways.items():
        _time(row, name, *way)
    return row


@torch.inference_mode()
def _gemm(device: torch.device, outputs: int, inputs: int) -> dict[str, float]:
    x = torch.randn(PROMPT_ROWS, inputs, device=device, dtype=torch.float16)
    row: dict[str, Any] = {"tokens": PROMPT_ROWS, "rows": outputs, "inputs": inputs}
    weights = outputs * inputs
    ways: dict[str, Callable[[Any], Tensor]] = {
        "ours_fp32": lambda weight: w4a16_matmul(x, weight, accumulate="fp32"),
        "ours_fp16": lambda weight: w4a16_matmul(x, weight, accumulate="fp16"),
    }
    if outputs > 2 * inputs:
        ways["ours_gate_up_silu"] = lambda weight: w4a16_gate_up(x, weight)
    for name, work in ways.items():
        _time(
            row, name, lambda: random_rows(outputs, inputs, device), work, 4, _int4_bytes(weights)
        )
    x_bf16 = x.bfloat16()
    _time(
        row,
        "torch_int4",
        lambda: _torch_int4(outputs, inputs, device),
        lambda weight: torch._weight_int4pack_mm(x_bf16, weight[0], 128, weight[1]),
        4,
        _int4_bytes(weights),
    )
    _time(
        row,
        "cublas_fp16",
        lambda: torch.randn(outputs, inputs, device=device, dtype=torch.float16),
        lambda weight: x @ weight.t(),
        4,
        2.0 * weights,
    )
    for key in [key for key in row if key.endswith("_us")]:
        row[key.replace("_us", "_tflop_s")] = 2e-6 * PROMPT_ROWS * weights / row[key]
    return row


def _torch_int4(outputs: int, inputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random codes and scales as torch's own int4 product takes them, bfloat16."""
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
    scales = torch.randn(inputs // 128, outputs, 2, device=device)
    return torch._convert_weight_to_int4pack(codes, 8), scales.bfloat16()


def _int4_bytes(weights: int) -> float:
    return weights / 2 + weights / 128 * 4


def _time(
    row: dict[str, Any],
    name: str,
    make: Callable[[], Any],
    work: Callable[[Any], Tensor],
    count: int,
    num_bytes: float,
) -> None:
    """Time of one way over `count` weights and bytes of them per second; a failure is noted."""
    try:
        calls = [_Call(work, make()) for _ in range(count)]
        row[f"{name}_us"] = rotated_us(calls)
        row[f"{name}_tb_s"] = num_bytes / row[f"{name}_us"] * 1e-6
    except Exception as error:
        torch.cuda.synchronize()
        row[f"{name}_error"] = f"{type(error).__name__}: {error}"[:200]
    calls = []
    forget()


class _Call:
    """A product with a weight of its own."""

    def __init__(self, work: Callable[[Any], Tensor], weight: Any) -> None:
        self._work, self._weight = work, weight

    def __call__(self) -> Tensor:
        return self._work(self._weight)

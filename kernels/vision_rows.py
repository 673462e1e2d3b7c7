# SPDX-License-Identifier: Apache-2.0
"""Launches the row-wise kernels: LayerNorm, GELU and quantization to int8 per row."""

from __future__ import annotations

from torch import Tensor

from nvila_ros.kernels import build

SOURCE = "vision_rows.cu"
VALUES_PER_LOAD = 4
MOST_VALUES = 80  # of a row that a thread keeps in registers
BLOCK_THREADS = 128


def defines(width: int) -> dict[str, int]:
    """How many threads share a row, and how many rows a block takes."""
    threads = 16
    while width > threads * MOST_VALUES:
        threads *= 2
    if threads > 32:
        threads = min(4 * threads, 256)  # a row that takes whole warps: more loads in flight
    return {"WIDTH": width, "THREADS": threads, "ROWS": max(1, BLOCK_THREADS // threads)}


def is_supported(width: int) -> bool:
    """Whether rows of this width fit registers and vector loads."""
    return width % VALUES_PER_LOAD == 0 and width <= 256 * MOST_VALUES


def _launch(name: str, width: int, arguments: list[object], rows: int, programmatic: bool) -> None:
    options = defines(width)
    build.load(SOURCE, options).kernel(name).launch(
        grid=(-(-rows // options["ROWS"]),),
        block=(options["THREADS"] * options["ROWS"],),
        args=arguments,
        programmatic=programmatic,
    )


def layer_norm_quantize(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    codes: Tensor,
    scales: Tensor,
    *,
    programmatic: bool = False,
) -> None:
    """(M, D) float16, (D,) float16 twice -> codes (M, D) int8 and scales (M,) float32, in place."""
    rows, width = hidden.shape
    arguments = [hidden, weight, bias, codes, scales, rows, codes.stride(0), float(eps)]
    _launch("layer_norm_quantize", width, arguments, rows, programmatic)


def quantize(
    inputs: Tensor, codes: Tensor, scales: Tensor, *, gelu: bool = False, programmatic: bool = False
) -> None:
    """(M, K) float16 [GELU first] -> codes (M, K) int8 and scales (M,) float32, in place."""
    rows, width = inputs.shape
    name = "gelu_quantize" if gelu else "quantize"
    arguments = [inputs, codes, scales, rows, codes.stride(0)]
    _launch(name, width, arguments, rows, programmatic)

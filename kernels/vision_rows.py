# SPDX-License-Identifier: Apache-2.0
"""Launches the row-wise kernels: LayerNorm, GELU and quantization to int8 per row."""

from __future__ import annotations

from torch import Tensor

from nvila_ros.kernels import build

SOURCE = "vision_rows.cu"
WIDEST_OF_ONE_WARP = 1536  # values of a row that one warp keeps in registers without spilling
VALUES_PER_LOAD = 4


def defines(width: int) -> dict[str, int]:
    """How many warps share a row, and rows a block; a block has at least 128 threads."""
    warps = 1
    while width > warps * WIDEST_OF_ONE_WARP and warps < 8:
        warps *= 2
    return {"WIDTH": width, "WARPS": warps, "ROWS": max(1, 4 // warps)}


def is_supported(width: int) -> bool:
    """Whether rows of this width fit registers and vector loads."""
    return width % VALUES_PER_LOAD == 0 and width <= 8 * WIDEST_OF_ONE_WARP


def _launch(name: str, width: int, arguments: list[object], rows: int, programmatic: bool) -> None:
    options = defines(width)
    build.load(SOURCE, options).kernel(name).launch(
        grid=(-(-rows // options["ROWS"]),),
        block=(options["WARPS"] * options["ROWS"] * 32,),
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
    arguments = [hidden, weight, bias, codes, scales, rows, float(eps)]
    _launch("layer_norm_quantize", width, arguments, rows, programmatic)


def quantize(
    inputs: Tensor, codes: Tensor, scales: Tensor, *, gelu: bool = False, programmatic: bool = False
) -> None:
    """(M, K) float16 [GELU first] -> codes (M, K) int8 and scales (M,) float32, in place."""
    rows, width = inputs.shape
    name = "gelu_quantize" if gelu else "quantize"
    _launch(name, width, [inputs, codes, scales, rows], rows, programmatic)

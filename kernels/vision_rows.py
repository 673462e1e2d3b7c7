# SPDX-License-Identifier: Apache-2.0
"""Launches the row-wise kernels: LayerNorm, GELU and quantization to int8 per row."""

from __future__ import annotations

import functools

from torch import Tensor

from nvila_ros.kernels import build, driver

SOURCE = "vision_rows.cu"
VALUES_PER_LOAD = 4
MOST_VALUES = 80  # of a row that a thread keeps in registers
LEAST_THREADS, LEAST_OF_FEW, MOST_THREADS = 32, 64, 256  # of a row
FEW_ROWS = 2048
BLOCK_THREADS = 128


def defines(width: int, is_few: bool = False) -> dict[str, int]:
    """How many threads share a row, and how many rows a block takes.

    With few rows there are not enough of them to hide how long a thread works on its share.
    """
    threads = LEAST_OF_FEW if is_few else LEAST_THREADS
    while width > threads * MOST_VALUES:
        threads *= 2
    if width > 32 * MOST_VALUES:
        threads = min(4 * threads, MOST_THREADS)  # whole warps anyway: more loads in flight
    rows = max(1, BLOCK_THREADS // threads)
    return {"WIDTH": width, "THREADS": threads, "ROWS": rows}


def is_supported(width: int) -> bool:
    """Whether rows of this width fit registers and vector loads."""
    return width % VALUES_PER_LOAD == 0 and width <= MOST_THREADS * MOST_VALUES


@functools.cache
def _most_blocks(name: str, width: int, is_few: bool, device: int) -> int:
    """Blocks that the device holds at a time: each takes rows in turn."""
    options = defines(width, is_few)
    kernel = build.load(SOURCE, options, device).kernel(name)
    each = kernel.max_blocks(options["THREADS"] * options["ROWS"], 0)
    return each * driver.device_attribute(driver.MULTIPROCESSORS, device)


def _launch(
    name: str, inputs: Tensor, arguments: list[object], rows: int, programmatic: bool
) -> None:
    width, is_few, device = inputs.shape[1], rows <= FEW_ROWS, inputs.device.index or 0
    options = defines(width, is_few)
    blocks = -(-rows // options["ROWS"])
    if name == "layer_norm_quantize":
        blocks = min(blocks, _most_blocks(name, width, is_few, device))
    build.load(SOURCE, options, device).kernel(name).launch(
        grid=(blocks,),
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
    from_end: bool = False,
) -> None:
    """(M, D) float16, (D,) float16 twice -> codes (M, D) int8 and scales (M,) float32, in place.

    `from_end` only changes the order: the last rows come first.
    """
    rows = hidden.shape[0]
    places = [rows, codes.stride(0), int(from_end)]
    arguments = [hidden, weight, bias, codes, scales, *places, float(eps)]
    _launch("layer_norm_quantize", hidden, arguments, rows, programmatic)


def quantize(
    inputs: Tensor,
    codes: Tensor,
    scales: Tensor,
    *,
    gelu: bool = False,
    programmatic: bool = False,
    from_end: bool = False,
) -> None:
    """(M, K) float16 [GELU first] -> codes (M, K) int8 and scales (M,) float32, in place.

    `from_end` only changes the order: the last rows come first.
    """
    rows = inputs.shape[0]
    name = "gelu_quantize" if gelu else "quantize"
    arguments = [inputs, codes, scales, rows, codes.stride(0), int(from_end)]
    _launch(name, inputs, arguments, rows, programmatic)

# SPDX-License-Identifier: Apache-2.0
"""Passes over memory of a tower layer's forward and backward: the kernels of `tower_layers`.

Each reads and writes a row once and sums what the biases and norms need while it has it in hand.
Sums go through partial sums of a fixed number of programs, so they are the same in every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Measured on an H100 at 57,344 rows of 1,152 and 4,304 in bfloat16 (ebaffec): TB/s beside each.
NORM = {"rows": 1, "num_warps": 2}  # 2.7
NORM_BACKWARD = {"rows": 2, "stages": 3, "num_warps": 8}  # 2.4 to 2.7
NUM_PROGRAMS = 264  # of the norm's backward pass: two for each multiprocessor of an H100
GELU_BLOCK = 2048  # 2.9
GELU_BACKWARD = {"rows": 8, "columns": 256, "stages": 3, "num_warps": 4}  # 2.5
COLUMN_SUMS = {"rows": 32, "columns": 128, "stages": 1, "num_warps": 4}  # 2.3
ROWS_PER_PROGRAM = 512  # of sums over a wide matrix
FINISH = {"rows": 128, "columns": 16, "num_warps": 4}


@triton.jit
def _norm(
    rows_in,  # (R, W)
    weight,  # (W,)
    bias,  # (W,)
    shift,  # (W,)
    extra,  # (W,)
    normed,  # (R, W), of rows + shift
    stream,  # (R, W): rows + shift + extra
    mean,  # (R,) float32
    inverse,  # (R,) float32: 1 / standard deviation
    num_rows,
    width,
    eps,
    rows: tl.constexpr,
    block: tl.constexpr,
    has_shift: tl.constexpr,  # False: neither shift nor extra is read
):
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, block)
    is_column = column < width
    is_inside = (row < num_rows)[:, None] & is_column[None, :]
    place = row[:, None] * width + column[None, :]
    values = tl.load(rows_in + place, mask=is_inside, other=0.0).to(tl.float32)
    if has_shift:
        before = tl.load(shift + column, mask=is_column, other=0.0).to(tl.float32)
        values = tl.where(is_inside, values + before[None, :], 0.0)
    middle = tl.sum(values, axis=1) / width
    centred = tl.where(is_inside, values - middle[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)
    gain = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * gain[None, :] + offset[None, :]
    tl.store(normed + place, result, mask=is_inside)
    if has_shift:
        more = tl.load(extra + column, mask=is_column, other=0.0).to(tl.float32)
        values += more[None, :]
    tl.store(stream + place, values, mask=is_inside)
    tl.store(mean + row, middle, mask=row < num_rows)
    tl.store(inverse + row, scale, mask=row < num_rows)


@triton.jit
def _norm_backward(
    slopes,  # (R, W), of the normed rows
    rows_in,  # (R, W)
    around,  # (R, W), gradient that passes the norm by
    mean,  # (R,) float32
    inverse,  # (R,) float32
    weight,  # (W,)
    shift,  # (W,)
    result,  # (R, W)
    partial,  # (programs, 2 or 4, W) float32
    num_rows,
    width,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,  # rows on their way to shared memory meanwhile; 1: none
    has_shift: tl.constexpr,  # False: shift is not read, two sums, not four
):
    program = tl.program_id(0)
    step = tl.num_programs(0) * rows
    column = tl.arange(0, block)
    is_column = column < width
    gain = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    if has_shift:
        before = tl.load(shift + column, mask=is_column, other=0.0).to(tl.float32)
    of_weight = tl.zeros([block], dtype=tl.float32)
    of_bias = tl.zeros([block], dtype=tl.float32)
    of_result = tl.zeros([block], dtype=tl.float32)
    of_around = tl.zeros([block], dtype=tl.float32)
    for first in tl.range(program * rows, num_rows, step, num_stages=stages):
        row = first + tl.arange(0, rows)
        is_row = row < num_rows
        is_inside = is_row[:, None] & is_column[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        slope = tl.load(slopes + place, mask=is_inside, other=0.0).to(tl.float32)
        values = tl.load(rows_in + place, mask=is_inside, other=0.0).to(tl.float32)
        passing = tl.load(around + place, mask=is_inside, other=0.0).to(tl.float32)
        if has_shift:
            values += before[None, :]
        middle = tl.load(mean + row, mask=is_row, other=0.0)
        scale = tl.load(inverse + row, mask=is_row, other=0.0)
        hat = tl.where(is_inside, (values - middle[:, None]) * scale[:, None], 0.0)
        weighted = slope * gain[None, :]
        along = tl.sum(weighted * hat, axis=1) / width
        level = tl.sum(weighted, axis=1) / width
        change = weighted - level[:, None] - hat * along[:, None]
        total = passing + scale[:, None] * change
        tl.store(result + place, total, mask=is_inside)
        of_weight += tl.sum(slope * hat, axis=0)
        of_bias += tl.sum(slope, axis=0)
        if has_shift:
            of_result += tl.sum(total, axis=0)
            of_around += tl.sum(passing, axis=0)
    count = 4 if has_shift else 2
    base = partial + program * count * width + column
    tl.store(base, of_weight, mask=is_column)
    tl.store(base + width, of_bias, mask=is_column)
    if has_shift:
        tl.store(base + 2 * width, of_result, mask=is_column)
        tl.store(base + 3 * width, of_around, mask=is_column)


@triton.jit
def _tanh(values):
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * values))


@triton.jit
def _gelu(before, after, numel, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_inside = place < numel
    x = tl.load(before + place, mask=is_inside, other=0.0).to(tl.float32)
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    tl.store(after + place, 0.5 * x * (1.0 + _tanh(inner)), mask=is_inside)


@triton.jit
def _gelu_backward(
    before,  # (R, W)
    slopes,  # (R, W), in place; without GELU only read
    partial,  # (chunks, W) float32
    num_rows,
    width,
    rows_per_program,
    rows: tl.constexpr,
    columns: tl.constexpr,
    stages: tl.constexpr,
    has_gelu: tl.constexpr,  # False: only sums columns
):
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    chunk = tl.program_id(1)
    is_column = column < width
    sums = tl.zeros([rows, columns], dtype=tl.float32)
    begin = chunk * rows_per_program
    end = tl.minimum(begin + rows_per_program, num_rows)
    for first in tl.range(begin, end, rows, num_stages=stages):
        row = first + tl.arange(0, rows)
        is_inside = (row < end)[:, None] & is_column[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        slope = tl.load(slopes + place, mask=is_inside, other=0.0).to(tl.float32)
        if has_gelu:
            x = tl.load(before + place, mask=is_inside, other=0.0).to(tl.float32)
            square = x * x
            bend = _tanh(0.7978845608028654 * x * (1.0 + 0.044715 * square))
            inner_slope = 0.7978845608028654 * (1.0 + 0.134145 * square)
            rise = 0.5 * (1.0 + bend) + 0.5 * x * (1.0 - bend * bend) * inner_slope
            slope = slope * rise
            tl.store(slopes + place, slope, mask=is_inside)
        sums += slope
    tl.store(partial + chunk * width + column, tl.sum(sums, axis=0), mask=is_column)


@triton.jit
def _finish(partial, result, num_partials, width, rows: tl.constexpr, columns: tl.constexpr):
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    sums = tl.zeros([rows, columns], dtype=tl.float32)
    for first in range(0, num_partials, rows):
        row = first + tl.arange(0, rows)
        is_inside = (row < num_partials)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        sums += tl.load(partial + place, mask=is_inside, other=0.0)
    tl.store(result + column, tl.sum(sums, axis=0), mask=column < width)


def _launch(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
    kernel[grid](*arguments, **options)


def _for_block(options: dict[str, int], block: int) -> dict[str, int]:
    """Wide rows one by one: shared memory and registers hold no more of them."""
    if block <= 2048:
        return options
    return options | {"rows": 1, "num_warps": 16} | ({"stages": 1} if "stages" in options else {})


def norm(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    shift: Tensor | None = None,
    extra: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `tower_layers.norm`."""
    num_rows, width = rows.shape
    normed, stream = torch.empty_like(rows), torch.empty_like(rows)
    mean, inverse = (torch.empty(num_rows, device=rows.device) for _ in range(2))
    block = triton.next_power_of_2(width)
    options = _for_block(NORM, block)
    grid = (triton.cdiv(num_rows, options["rows"]),)
    outputs = (normed, stream, mean, inverse)
    vectors = (weight, bias, *((bias, bias) if shift is None else (shift, extra)))
    inputs = (rows, *vectors, *outputs, num_rows, width, eps)
    _launch(_norm, grid, *inputs, block=block, has_shift=shift is not None, **options)
    return outputs


def norm_backward(
    slope: Tensor,
    rows: Tensor,
    around: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `tower_layers.norm_backward`."""
    num_rows, width = rows.shape
    block = triton.next_power_of_2(width)
    options = _for_block(NORM_BACKWARD, block)
    programs = min(NUM_PROGRAMS, triton.cdiv(num_rows, options["rows"]))
    has_shift = shift is not None
    count = 4 if has_shift else 2
    result = torch.empty_like(rows)
    partial = torch.empty(programs, count * width, device=rows.device)
    vectors = (mean, inverse, weight, weight if shift is None else shift)
    inputs = (slope, rows, around, *vectors, result, partial, num_rows, width)
    _launch(_norm_backward, (programs,), *inputs, block=block, has_shift=has_shift, **options)
    return result, finish(partial, weight.dtype).view(count, width)


def gelu(before: Tensor) -> Tensor:
    """See `tower_layers.gelu`."""
    after = torch.empty_like(before)
    grid = (triton.cdiv(before.numel(), GELU_BLOCK),)
    _launch(_gelu, grid, before, after, before.numel(), block=GELU_BLOCK)
    return after


def gelu_backward(before: Tensor, slope: Tensor) -> Tensor:
    """See `tower_layers.gelu_backward`."""
    return _sums(before, slope, GELU_BACKWARD, has_gelu=True)


def column_sums(values: Tensor) -> Tensor:
    """See `tower_layers.column_sums`."""
    return _sums(values, values, COLUMN_SUMS, has_gelu=False)


def _sums(before: Tensor, slope: Tensor, options: dict[str, int], *, has_gelu: bool) -> Tensor:
    num_rows, width = slope.shape
    chunks = triton.cdiv(num_rows, ROWS_PER_PROGRAM)
    partial = torch.empty(chunks, width, device=slope.device)
    grid = (triton.cdiv(width, options["columns"]), chunks)
    inputs = (before, slope, partial, num_rows, width, ROWS_PER_PROGRAM)
    _launch(_gelu_backward, grid, *inputs, has_gelu=has_gelu, **options)
    return finish(partial, slope.dtype)


def finish(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """(P, N) float32 -> (N,): sums of the columns."""
    num_partials, width = partial.shape
    result = torch.empty(width, dtype=dtype, device=partial.device)
    grid = (triton.cdiv(width, FINISH["columns"]),)
    _launch(_finish, grid, partial, result, num_partials, width, **FINISH)
    return result

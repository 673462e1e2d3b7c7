# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the vision tower: int8 GEMM and attention, for GPUs from sm_80 up.

Imported only where there is a GPU: Triton comes with torch's CUDA wheels on Linux, not elsewhere.
"""

# ruff: noqa: N803 (constants of a Triton kernel are spelt as constants)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
def _tanh_gelu(value):
    """The tanh GELU as a sigmoid, which needs no tanh: 2 sigmoid(2 u) - 1 = tanh(u)."""
    inner = value * (1.5957691216 + 0.0713548163 * value * value)
    return value / (1.0 + tl.exp2(-1.4426950409 * inner))


@triton.jit
def _int8_gemm(
    codes,  # (M, K) int8
    row_scale,  # (M,) float32
    weight,  # (N, K) int8
    column_scale,  # (N,) float32
    bias,  # (N,) float or any pointer
    residual,  # (M, N) or any pointer
    out,  # (M, N)
    m,
    n,
    k: tl.constexpr,
    CODE_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GELU: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of f(codes weight^T row_scale column_scale + bias) + residual, summed exactly."""
    tiles_m, tiles_n = tl.cdiv(m, TILE_M), tl.cdiv(n, TILE_N)
    index = tl.program_id(0)
    first_m = index // (GROUP * tiles_n) * GROUP  # GROUP tiles of rows share the columns in L2
    rows_here = min(tiles_m - first_m, GROUP)
    tile_m = first_m + index % (GROUP * tiles_n) % rows_here
    tile_n = index % (GROUP * tiles_n) // rows_here
    rows = tile_m * TILE_M + tl.arange(0, TILE_M)
    columns = tile_n * TILE_N + tl.arange(0, TILE_N)
    inner = tl.arange(0, TILE_K)
    a = codes + (rows % m).to(tl.int64)[:, None] * CODE_STRIDE + inner[None, :]
    b = weight + (columns % n).to(tl.int64)[None, :] * WEIGHT_STRIDE + inner[:, None]
    total = tl.zeros((TILE_M, TILE_N), dtype=tl.int32)
    for start in range(0, k, TILE_K):
        if k % TILE_K == 0:
            total = tl.dot(tl.load(a), tl.load(b), total, out_dtype=tl.int32)
        else:  # past the end of K both are zero
            left = tl.load(a, mask=inner[None, :] < k - start, other=0)
            right = tl.load(b, mask=inner[:, None] < k - start, other=0)
            total = tl.dot(left, right, total, out_dtype=tl.int32)
        a += TILE_K
        b += TILE_K
    scale_m = tl.load(row_scale + rows, mask=rows < m, other=0.0)
    scale_n = tl.load(column_scale + columns, mask=columns < n, other=0.0)
    values = total.to(tl.float32) * scale_m[:, None] * scale_n[None, :]
    if HAS_BIAS:
        values += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    if GELU:
        values = _tanh_gelu(values)
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    offsets = rows.to(tl.int64)[:, None] * n + columns[None, :]
    if HAS_RESIDUAL:
        values += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _attention(
    qkv,  # (F * P, 3 * heads * WIDTH): q, k and v of every head side by side
    out,  # (F * P, heads * WIDTH)
    num_heads,
    scale,  # log2(e) / sqrt(WIDTH)
    NUM_TOKENS: tl.constexpr,  # P
    WIDTH: tl.constexpr,
    HIGH: tl.constexpr,  # columns in the first part of a head, a power of two
    LOW: tl.constexpr,  # columns of the second part, padded with zeros
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """ROWS queries of one head of one frame over all of its keys; online softmax in base 2.

    A head of 72 is 64 + 8: the products over the 8 are padded to 16, not the whole to 128.
    """
    head, frame = tl.program_id(1), tl.program_id(2)
    stride = 3 * num_heads * WIDTH
    base = qkv + frame.to(tl.int64) * NUM_TOKENS * stride + head * WIDTH
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys = tl.arange(0, KEYS)
    high = tl.arange(0, HIGH)
    low = HIGH + tl.arange(0, LOW)
    in_low = low < WIDTH
    in_rows = rows < NUM_TOKENS
    q_rows = base + rows[:, None] * stride
    q_high = tl.load(q_rows + high[None, :], mask=in_rows[:, None], other=0.0)
    q_low = tl.load(q_rows + low[None, :], mask=in_rows[:, None] & in_low[None, :], other=0.0)
    k_rows = base + num_heads * WIDTH + keys * stride
    v_rows = base + 2 * num_heads * WIDTH + keys * stride
    best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    mixed_high = tl.zeros((ROWS, HIGH), dtype=tl.float32)
    mixed_low = tl.zeros((ROWS, LOW), dtype=tl.float32)
    for start in range(0, NUM_TOKENS, KEYS):
        inside = keys < NUM_TOKENS - start
        k_high = tl.load(k_rows[None, :] + high[:, None], mask=inside[None, :], other=0.0)
        k_low = tl.load(
            k_rows[None, :] + low[:, None], mask=inside[None, :] & in_low[:, None], other=0.0
        )
        scores = tl.dot(q_low, k_low, tl.dot(q_high, k_high))
        if NUM_TOKENS % KEYS != 0:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        larger = tl.maximum(best, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - larger[:, None])
        shrink = tl.exp2(best - larger)
        total = total * shrink + tl.sum(weights, 1)
        best = larger
        v_high = tl.load(v_rows[:, None] + high[None, :], mask=inside[:, None], other=0.0)
        v_low = tl.load(
            v_rows[:, None] + low[None, :], mask=inside[:, None] & in_low[None, :], other=0.0
        )
        weights = weights.to(v_high.dtype)
        mixed_high = tl.dot(weights, v_high, mixed_high * shrink[:, None])
        mixed_low = tl.dot(weights, v_low, mixed_low * shrink[:, None])
        k_rows += KEYS * stride
        v_rows += KEYS * stride
    share = 1.0 / total
    out_rows = out + (frame.to(tl.int64) * NUM_TOKENS + rows)[:, None] * (num_heads * WIDTH)
    out_rows += head * WIDTH
    kind = out.dtype.element_ty
    tl.store(
        out_rows + high[None, :], (mixed_high * share[:, None]).to(kind), mask=in_rows[:, None]
    )
    tl.store(
        out_rows + low[None, :],
        (mixed_low * share[:, None]).to(kind),
        mask=in_rows[:, None] & in_low[None, :],
    )


def int8_gemm(
    codes: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    gelu: bool = False,
    tile: tuple[int, int, int] = (128, 128, 128),
    num_stages: int = 3,
    num_warps: int = 8,
) -> Tensor:
    """(M, K) int8, (M,) float32, (N, K) int8, (N,) float32 [, (N,), (M, N)] -> `out` (M, N)."""
    m, k = codes.shape
    n = weight.shape[0]
    tile_m, tile_n, tile_k = tile
    grid = (triton.cdiv(m, tile_m) * triton.cdiv(n, tile_n),)
    _int8_gemm[grid](
        codes,
        scales,
        weight,
        weight_scale,
        bias if bias is not None else weight_scale,
        residual if residual is not None else out,
        out,
        m,
        n,
        k,
        CODE_STRIDE=codes.stride(0),
        WEIGHT_STRIDE=weight.stride(0),
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        GELU=gelu,
        TILE_M=tile_m,
        TILE_N=tile_n,
        TILE_K=tile_k,
        GROUP=8,
        num_stages=num_stages,
        num_warps=num_warps,
    )
    return out


def attention(
    qkv: Tensor,
    out: Tensor,
    *,
    num_frames: int,
    num_heads: int,
    rows: int = 128,
    keys: int = 64,
    num_stages: int = 2,
    num_warps: int = 8,
) -> Tensor:
    """(F * P, 3 * heads * d) float16 -> `out` (F * P, heads * d): attention within each frame."""
    num_tokens = qkv.shape[0] // num_frames
    width = qkv.shape[1] // (3 * num_heads)
    high = 1 << (width.bit_length() - 1)
    low = max(16, triton.next_power_of_2(width - high)) if width > high else 16
    grid = (triton.cdiv(num_tokens, rows), num_heads, num_frames)
    _attention[grid](
        qkv,
        out,
        num_heads,
        LOG2_E / width**0.5,
        NUM_TOKENS=num_tokens,
        WIDTH=width,
        HIGH=high,
        LOW=low,
        ROWS=rows,
        KEYS=keys,
        num_stages=num_stages,
        num_warps=num_warps,
    )
    return out

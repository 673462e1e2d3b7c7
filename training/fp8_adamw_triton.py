# SPDX-License-Identifier: Apache-2.0
"""One pass over a parameter, its gradient and its float8 moments: the kernel of `fp8_adamw`.

Bytes per parameter: weight read and written (4 in bfloat16), gradient (2), moments (4): 10, where
AdamW with float32 moments and weights moves 28.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(256)
ROWS = 4  # blocks that one program takes


@triton.jit(do_not_specialize=["num_blocks", "seed"])
def _adamw(
    weight,  # (N,) bfloat16 or float32, in place
    gradient,  # (N,) bfloat16 or float32
    first,  # (blocks, 256) E4M3
    first_scale,  # (blocks,) float32
    root,  # (blocks, 256) E4M3
    root_scale,  # (blocks,) float32
    numel,
    num_blocks,
    rate,
    first_beta,
    first_share,
    second_beta,
    second_share,
    eps,
    decay,
    first_correction,
    root_correction,
    seed,
    rows: tl.constexpr,
    is_rounded: tl.constexpr,  # bfloat16 weights: stochastically
):
    block = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    index = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # (rows, 256)
    is_block = block < num_blocks
    is_inside = index < numel
    is_kept = is_block[:, None] & (index >= 0)
    values = tl.load(weight + index, mask=is_inside, other=0.0).to(tl.float32)
    slope = tl.load(gradient + index, mask=is_inside, other=0.0).to(tl.float32)
    m_scale = tl.load(first_scale + block, mask=is_block, other=0.0)
    v_scale = tl.load(root_scale + block, mask=is_block, other=0.0)
    m = tl.load(first + index, mask=is_kept, other=0.0).to(tl.float32) * m_scale[:, None]
    v = tl.load(root + index, mask=is_kept, other=0.0).to(tl.float32) * v_scale[:, None]

    m = first_beta * m + first_share * slope
    v = tl.sqrt(second_beta * v * v + second_share * slope * slope)
    values = values * (1.0 - rate * decay)
    values = values - rate * (m / first_correction) / (v / root_correction + eps)

    m_scale = tl.max(tl.abs(m), axis=1) / 448.0
    v_scale = tl.max(v, axis=1) / 448.0
    m = m * tl.where(m_scale > 0, 1.0 / m_scale, 0.0)[:, None]
    v = v * tl.where(v_scale > 0, 1.0 / v_scale, 0.0)[:, None]
    v = tl.where(v > 0, tl.maximum(v, 0.001953125), v)  # 2^-9: what is above zero stays there
    tl.store(first + index, m.to(tl.float8e4nv), mask=is_kept)
    tl.store(root + index, v.to(tl.float8e4nv), mask=is_kept)
    tl.store(first_scale + block, m_scale, mask=is_block)
    tl.store(root_scale + block, v_scale, mask=is_block)

    if is_rounded:
        mixed = (index + seed).to(tl.uint32)
        mixed = (mixed ^ (mixed >> 16)) * 0x7FEB352D
        mixed = (mixed ^ (mixed >> 15)) * 0x846CA68B
        mixed = mixed ^ (mixed >> 16)
        bits = values.to(tl.uint32, bitcast=True) + (mixed & 0xFFFF)
        high = (bits >> 16).to(tl.uint16)
        tl.store(weight + index, high.to(tl.bfloat16, bitcast=True), mask=is_inside)
    else:
        tl.store(weight + index, values, mask=is_inside)


def update_blocks(
    weight: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    factors: tuple[float, ...],
    seed: int,
) -> None:
    """One AdamW step of a contiguous parameter, in place; see `fp8_adamw.update_blocks`."""
    assert weight.is_contiguous(), "a parameter is updated where it lies"
    num_blocks = triton.cdiv(weight.numel(), 256)
    _adamw[(triton.cdiv(num_blocks, ROWS),)](
        weight,
        gradient,
        state["first"],
        state["first_scale"],
        state["root"],
        state["root_scale"],
        weight.numel(),
        num_blocks,
        *factors,
        seed,
        rows=ROWS,
        is_rounded=weight.dtype == torch.bfloat16,
    )

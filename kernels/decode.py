# SPDX-License-Identifier: Apache-2.0
"""One to eight rows through a decoder: each op is one kernel, or its slow twin without a GPU.

Letters: M rows (1 to 8), D width, N outputs, K inputs, H query heads, Hkv key-value heads, d head
width, S slots of the cache, I intermediate width, V vocabulary, A allowed tokens. On the GPU all
activations are float16; every `out` may be given, so that captured graphs write to fixed places.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nvila_ros.kernels import build, decode_persistent, decode_persistent_plan, reference
from nvila_ros.kernels.decode_persistent_plan import PHASES, RELEASED
from nvila_ros.kernels.decode_plan import (
    H100,
    MAX_SPLITS,
    Plan,
    device_of,
    plan_attention,
    plan_head,
    plan_linear,
)
from nvila_ros.kernels.packing import RowsInt4

LOG2_E = 1.4426950408889634
ONE_ROW = {
    "BATCH": 1,
    "STAGES": 3,
    "MIN_BLOCKS": 2,
    "MAX_THREADS": 448,
}  # what most linears of a step are compiled with


def is_fast(tensor: Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return tensor.dtype == torch.float16 and build.is_fast(tensor)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None) -> Tensor:
    """(M, D) -> (M, D), any M; float32 inside."""
    if not is_fast(hidden) or hidden.shape[-1] % 8:
        return _into(out, reference.rms_norm(hidden, weight, eps))
    out = torch.empty_like(hidden) if out is None else out
    num_rows, width = hidden.shape
    kernel = build.load("decode.cu", ONE_ROW).kernel("rms_norm")
    arguments = [hidden.contiguous(), weight, out, float(eps), width]
    kernel.launch(grid=(num_rows,), block=(256,), args=arguments, programmatic=_overlaps(hidden))
    return out


def qkv_rope(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: RowsInt4,
    bias: Tensor | None,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """(M, D) -> q (M, H, d) of the normed rows, rotated; k and v go into the cache at `slots`.

    weight: rows q | k | v; cos_sin (S, d) float32 = [cos | sin] by position; positions, slots (M,)
    int32; caches (Hkv, S, d).
    """
    if not is_fast(hidden):
        twin = reference.qkv_rope(
            hidden, norm_weight, eps, weight, bias, cos_sin, positions, slots, k_cache, v_cache
        )
        return _into(out, twin)
    num_kv_heads, cache_length, width = k_cache.shape
    num_heads = weight.num_outputs // width - 2 * num_kv_heads
    num_rows = len(hidden)
    if out is None:
        out = hidden.new_empty(num_rows, num_heads, width)
    _launch_linear(
        "qkv_rope", hidden, weight, weight.num_outputs // 2,
        [hidden, norm_weight, bias, cos_sin, positions, slots, out, k_cache, v_cache, float(eps),
         num_rows, num_heads, num_kv_heads, width, cache_length],
    )  # fmt: skip
    return out


def attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    out: Tensor | None = None,
    is_cache_ready: bool = False,
) -> Tensor:
    """q (M, H, d), caches (Hkv, S, d) -> (M, H d); row m sees the keys [0, lengths[m]), int32.

    is_cache_ready: `lengths`, and all keys but those of the last M slots in sight, were written
    before the kernel ahead of this one began; they are then read while that one still runs.
    """
    if not is_fast(query):
        return _into(out, reference.attention(query, k_cache, v_cache, lengths))
    num_rows, num_heads, width = query.shape
    num_kv_heads, cache_length, _ = k_cache.shape
    index = query.device.index
    plan = plan_attention(device_of(index), cache_length, width)
    row_tiles = -(-num_rows * num_heads // num_kv_heads // 16)
    workspace, counters = _attention_room(index, num_kv_heads, row_tiles, width)
    if out is None:
        out = query.new_empty(num_rows, num_heads * width)
    build.load("decode_attention.cu", plan.defines).kernel("attention").launch(
        grid=(plan.num_blocks, num_kv_heads, row_tiles),
        block=(32 * plan.num_warps,),
        args=[
            query, k_cache, v_cache, lengths, out, workspace, counters, num_rows, num_heads,
            num_kv_heads, cache_length, LOG2_E / width**0.5, int(is_cache_ready),
        ],
        shared_bytes=plan.shared_bytes,
        programmatic=_overlaps(query),
    )  # fmt: skip
    return out


def linear_residual(
    x: Tensor, weight: RowsInt4, residual: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """(M, K), (M, N) -> residual + x W^T; `out` may be `residual` itself."""
    if not is_fast(x):
        return _into(out, reference.linear_residual(x, weight, residual))
    return _linear(x, weight, None, residual, out)


def w4a16_linear(
    x: Tensor, weight: RowsInt4, bias: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """(M, K) -> (M, N): x W^T + bias."""
    if not is_fast(x):
        return _into(out, reference.w4a16_rows(x, weight, bias))
    return _linear(x, weight, bias, None, out)


def _linear(
    x: Tensor, weight: RowsInt4, bias: Tensor | None, residual: Tensor | None, out: Tensor | None
) -> Tensor:
    if out is None:
        out = x.new_empty(len(x), weight.num_outputs)
    arguments = [x, bias, residual, out, len(x), weight.num_outputs]
    _launch_linear("linear", x, weight, -(-weight.num_outputs // 16) * 8, arguments)
    return out


def gate_up(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: RowsInt4,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """(M, D) -> (M, I): silu(gate) * up of the normed rows; W holds all gate rows, then all up."""
    if not is_fast(hidden):
        return _into(out, reference.gate_up(hidden, norm_weight, eps, weight))
    intermediate = weight.num_outputs // 2
    if out is None:
        out = hidden.new_empty(len(hidden), intermediate)
    arguments = [hidden, norm_weight, out, float(eps), len(hidden), intermediate]
    _launch_linear("gate_up", hidden, weight, intermediate, arguments)
    return out


def head_argmax(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    head: tuple[Tensor, Tensor] | RowsInt4 | Tensor,
    allowed: Tensor | None = None,
    *,
    out: Tensor | None = None,
    position: Tensor | None = None,
    history: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(M, D) -> the best token (M,) int32, and the scores (M, A) float32 of the allowed (A,) int32.

    head: int8 rows (V, D) with scales (V,) float32, int4 rows or dense rows. Of equal scores the
    smaller token. position, history (S + 1,), int32, M = 1: numbers that go on by one, the position
    first, and the list that keeps the new token at its position.
    """
    if not is_fast(hidden) or not isinstance(head, tuple):
        token, scores = reference.head_argmax(hidden, norm_weight, eps, head, allowed)
        if position is not None:
            position += 1
            if history is not None:
                history[position[:1].long()] = token
        return _into(out, token), scores
    rows, scales = head
    num_rows, width = hidden.shape
    num_tokens = len(rows) if allowed is None else len(allowed)
    index = hidden.device.index
    plan = plan_head(device_of(index), num_rows, num_tokens, width)
    best, finished = _head_room(index)
    token = torch.empty(num_rows, dtype=torch.int32, device=hidden.device) if out is None else out
    scores = None if allowed is None else hidden.new_empty(num_rows, num_tokens, dtype=torch.float)
    build.load("decode_head.cu", plan.defines).kernel("head_argmax").launch(
        grid=(plan.num_blocks,),
        block=(32 * plan.num_warps,),
        args=[
            rows, scales, hidden, norm_weight, allowed, scores, token, best, finished, position,
            history, 0 if position is None else position.numel(), float(eps), num_rows,
            num_tokens, width,
        ],
        shared_bytes=plan.shared_bytes,
        programmatic=_overlaps(hidden),
    )  # fmt: skip
    return token, scores


def embed(tokens: Tensor, table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """(M,) int32, (V, D) -> (M, D)."""
    if not is_fast(table) or table.shape[1] % 8:
        return _into(out, table[tokens.long()])
    out = table.new_empty(len(tokens), table.shape[1]) if out is None else out
    build.load("decode.cu", ONE_ROW).kernel("embed").launch(
        grid=(len(tokens),),
        block=(256,),
        args=[tokens, table, out, table.shape[1]],
        programmatic=_overlaps(table),
    )
    return out


def ahead_of_time() -> Iterator[tuple[str, Mapping[str, object]]]:
    """What `build` compiles ahead: one row, as robots decode."""
    yield "decode.cu", ONE_ROW
    yield "decode.cu", {**ONE_ROW, "STAGES": 2}
    yield "decode_head.cu", {"BATCH": 1, "HEAD_STAGES": 8}
    yield "decode_attention.cu", {"HEAD_DIM": 128}
    yield "decode_attention.cu", {"HEAD_DIM": 64}


def ahead_of_time_hopper() -> Iterator[tuple[str, Mapping[str, object]]]:
    """The same for sm_90a alone: linears of the released decoders, and their step in one launch."""
    shapes = [(each.num_pairs(p), each.num_inputs(p)) for each in RELEASED for p in PHASES]
    found = [plan_linear(H100, 1, pairs, inputs).defines for pairs, inputs in shapes]
    yield from (("decode.cu", each) for i, each in enumerate(found) if each not in found[:i])
    yield "decode_head.cu", plan_head(H100, 1, 1, RELEASED[0].hidden).defines
    for sizes in RELEASED:
        cut = decode_persistent_plan.plan(sizes, H100)
        if cut is not None:
            yield decode_persistent.SOURCE, cut.defines
            yield decode_persistent.SOURCE, dataclasses.replace(cut, has_head=True).defines


def _launch_linear(
    name: str, x: Tensor, weight: RowsInt4, num_pairs: int, arguments: list[Any]
) -> None:
    plan: Plan = plan_linear(device_of(x.device.index), len(x), num_pairs, weight.num_inputs)
    build.load("decode.cu", plan.defines).kernel(name).launch(
        grid=(plan.num_blocks, plan.num_chunks),
        block=(32 * plan.num_warps,),
        args=[weight.qweight, weight.scale_zero, *arguments, weight.scale_zero.shape[1]],
        shared_bytes=plan.shared_bytes,
        programmatic=_overlaps(x),
    )


def _overlaps(tensor: Tensor) -> bool:
    """Hopper on: a kernel may start while the one before it ends, and waits by itself."""
    return torch.cuda.get_device_capability(tensor.device) >= (9, 0)


@functools.cache
def _attention_room(
    index: int, num_kv_heads: int, row_tiles: int, width: int
) -> tuple[Tensor, Tensor]:
    """What blocks tell each other: at fixed places, so that captured graphs may point there."""
    device, tasks = torch.device("cuda", index), num_kv_heads * row_tiles
    found = torch.empty(tasks * MAX_SPLITS * 16 * (width + 2), device=device)
    return found, torch.zeros(tasks, dtype=torch.int32, device=device)


@functools.cache
def _head_room(index: int) -> tuple[Tensor, Tensor]:
    device = torch.device("cuda", index)
    return (
        torch.zeros(8, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
    )


def _into(out: Tensor | None, value: Tensor) -> Tensor:
    return value if out is None else out.copy_(value)

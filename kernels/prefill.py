# SPDX-License-Identifier: Apache-2.0
"""A decoder layer over many rows: int4 products, attention after a kept prefix, what lies between.

Letters: M rows (tokens), D width, I inner width, H query heads, Hkv key-value heads, d head width,
S slots of the cache, T keys in sight. Everything runs on torch's current stream, waits for nothing
on the host and may be captured. Off the GPU the slow twins answer, in any float dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.kernels import build, driver, prefill_attention, reference
from nvila_ros.kernels.packing import RowsInt4
from nvila_ros.kernels.prefill_attention import attention_rows
from nvila_ros.kernels.w4a16_gemm import w4a16_gate_up, w4a16_matmul

__all__ = [
    "LayerShape",
    "LayerWeights",
    "attention_rows",
    "dequantize",
    "prefill_layer",
    "rms_norm",
    "rope_cache",
    "silu_mul",
]

_SOURCE = "prefill.cu"
_THREADS = 256
_MOST_WIDTH = 16384  # of rms_norm_rows


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What a decoder layer's tensors do not say."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float  # of both norms


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: Tensor  # (D,)
    qkv: RowsInt4  # (H + 2 Hkv) d rows: q | k | v
    qkv_bias: Tensor | None  # ((H + 2 Hkv) d,)
    output: RowsInt4  # D rows
    post_norm: Tensor  # (D,)
    gate_up: RowsInt4  # 2 I rows: gate | up
    down: RowsInt4  # D rows


def prefill_layer(
    hidden: Tensor,
    weights: LayerWeights,
    shape: LayerShape,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_keys: int,
    mask: Tensor | None = None,
) -> Tensor:
    """(M, D) -> (M, D), a new tensor; row m's key and value are written at slots[m].

    cos_sin (positions, d) float32; positions, slots (M,) int32; caches (Hkv, S, d). Rows see the
    first `num_keys` slots: all up to their own place from the end, or where `mask` (M, T) is True.
    """
    normed = rms_norm(hidden, weights.input_norm, shape.eps)
    qkv = w4a16_matmul(normed, weights.qkv, bias=weights.qkv_bias)
    query = rope_cache(qkv, cos_sin, positions, slots, k_cache, v_cache, shape.num_heads)
    mixed = attention_rows(query, k_cache, v_cache, num_keys, mask)
    hidden = w4a16_matmul(mixed, weights.output, residual=hidden)
    normed = rms_norm(hidden, weights.post_norm, shape.eps)
    return w4a16_matmul(w4a16_gate_up(normed, weights.gate_up), weights.down, residual=hidden)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(M, D) -> (M, D), float32 inside; the normed value is rounded before the weight."""
    width = hidden.shape[-1]
    if not _has_kernel(hidden) or width % 8 or width > _MOST_WIDTH:
        return reference.rms_norm(hidden, weight, eps)
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    _launch("rms_norm_rows", (len(hidden),), hidden.contiguous(), weight, out, width, float(eps))
    return out


def rope_cache(
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
) -> Tensor:
    """qkv (M, (H + 2 Hkv) d) -> q (M, H, d) turned; keys and values go to `slots` of the caches."""
    num_kv_heads, num_slots, width = k_cache.shape
    if not _has_kernel(qkv) or width % 16 or k_cache.dtype != qkv.dtype:
        return reference.rope_cache(qkv, cos_sin, positions, slots, k_cache, v_cache, num_heads)
    assert positions.dtype == slots.dtype == torch.int32 and cos_sin.dtype == torch.float32
    assert k_cache.is_contiguous() and v_cache.is_contiguous() and cos_sin.is_contiguous()
    query = qkv.new_empty(len(qkv), num_heads, width)
    _launch(
        "rope_cache_rows",
        (len(qkv),),
        qkv.contiguous(),
        cos_sin,
        positions,
        slots,
        query,
        k_cache,
        v_cache,
        num_heads,
        num_kv_heads,
        num_slots,
        width,
    )
    return query


def silu_mul(gate_up: Tensor) -> Tensor:
    """(M, 2 I): gate columns, then up columns -> silu(gate) * up (M, I)."""
    width = gate_up.shape[-1] // 2
    if not _has_kernel(gate_up) or width % 8:
        return reference.silu_mul(gate_up)
    out = gate_up.new_empty(len(gate_up), width)
    blocks = -(-width // (8 * _THREADS))
    _launch("silu_mul_rows", (blocks, len(gate_up)), gate_up.contiguous(), out, width)
    return out


def dequantize(weight: RowsInt4, out: Tensor | None = None) -> Tensor:
    """The dense weight (N, K) in fp16: what library products of peers multiply."""
    if not build.is_fast(weight.qweight):
        dense = reference.dense_rows(weight)
        return dense if out is None else out.copy_(dense)
    words = weight.qweight
    if out is None:
        out = torch.empty(
            words.shape[0], weight.num_inputs, dtype=torch.float16, device=words.device
        )
    blocks = -(-words.numel() // _THREADS)
    _launch(
        "dequantize_rows", (blocks,), words, weight.scale_zero, out, words.numel(), words.shape[1]
    )
    return out


def ahead_of_time() -> Iterator[tuple[str, Mapping[str, object]]]:
    """Sources and defines that `python -m nvila_ros.kernels.build` compiles."""
    yield _SOURCE, {}
    yield from prefill_attention.ahead_of_time()


def _has_kernel(values: Tensor) -> bool:
    return values.dtype == torch.float16 and build.is_fast(values)


@functools.cache
def _kernel(name: str, index: int) -> tuple[driver.Kernel, bool]:
    """The function, and whether this GPU may begin it before the kernel ahead of it ends."""
    is_overlapping = torch.cuda.get_device_capability(index) >= (9, 0)
    return build.load(_SOURCE, None, index).kernel(name), is_overlapping


def _launch(name: str, grid: tuple[int, ...], *args: Tensor | float) -> None:
    first = args[0]
    assert isinstance(first, Tensor)
    if 0 not in grid:
        kernel, is_overlapping = _kernel(name, first.device.index)
        kernel.launch(grid=grid, block=(_THREADS,), args=args, programmatic=is_overlapping)

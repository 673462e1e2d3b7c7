# SPDX-License-Identifier: Apache-2.0
"""A decoder layer over many rows: int4 products, attention after a kept prefix, what lies between.

Letters: M rows (tokens), D width, I inner width, H query heads, Hkv key-value heads, d head width,
S slots of the cache, T keys in sight. Everything runs on torch's current stream, waits for nothing
on the host and may be captured. Off the GPU the slow twins answer, in any float dtype.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels import build, driver, reference
from nvila_ros.kernels.packing import RowsInt4
from nvila_ros.kernels.w4a16_gemm import w4a16_gate_up, w4a16_matmul

log = logging.getLogger(__name__)

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


def attention_rows(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, num_keys: int, mask: Tensor | None = None
) -> Tensor:
    """q (M, H, d), caches (Hkv, S, d) -> (M, H d) over the first T = `num_keys` slots.

    Without `mask` (M, T), row m sees the keys [0, T - M + m]; with it, those where it is True.
    """
    if not _has_kernel(query) or not len(query):
        return reference.attention_rows(query, k_cache, v_cache, num_keys, mask)
    keys, values = k_cache[None, :, :num_keys], v_cache[None, :, :num_keys]
    if mask is not None:
        return _masked_attention(query, keys, values, mask)
    num_kept = num_keys - len(query)
    if num_kept * 3 <= num_keys and _has_hopper_attention(query.device.index):
        return _square_attention(query, keys, values, num_kept)
    # The operator under SDPA: its causal rule counts from the end, heads are grouped inside.
    mixed = torch.ops.aten._scaled_dot_product_flash_attention(
        query.transpose(0, 1)[None], keys, values, 0.0, True
    )[0]
    return mixed[0].transpose(0, 1).flatten(1)


def _square_attention(query: Tensor, keys: Tensor, values: Tensor, num_kept: int) -> Tensor:
    """cuDNN's causal rule counts from the start: rows of zeros stand for what is kept."""
    if num_kept:
        query = F.pad(query, (0, 0, 0, 0, num_kept, 0))
    mixed = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query.transpose(0, 1)[None], keys, values, None, False, 0.0, True
    )[0]
    return mixed[0, :, num_kept:].transpose(0, 1).flatten(1)


@functools.cache
def _has_hopper_attention(index: int) -> bool:
    """cuDNN's kernels use Hopper's own instructions; 34 us where the other takes 59."""
    if torch.cuda.get_device_capability(index) < (9, 0) or not torch.backends.cudnn.is_available():
        return False
    try:
        query = torch.zeros(1, 4, 128, 64, dtype=torch.float16, device=f"cuda:{index}")
        torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, query[:, :2], query[:, :2], None, False, 0.0, True
        )
    except RuntimeError as error:
        log.info("cuDNN has no attention here (%s): flash attention answers", error)
        return False
    return True


def _masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Query heads that share keys become rows of one head: nothing is repeated but the mask."""
    num_rows, num_heads, width = query.shape
    num_kv_heads = keys.shape[1]
    shared = num_heads // num_kv_heads
    grouped = query.view(num_rows, num_kv_heads, shared, width).permute(1, 2, 0, 3).flatten(1, 2)
    rows = mask.expand(shared, *mask.shape).flatten(0, 1)
    mixed = F.scaled_dot_product_attention(grouped[None], keys, values, attn_mask=rows)
    return mixed.view(num_kv_heads, shared, num_rows, width).permute(2, 0, 1, 3).flatten(1)


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

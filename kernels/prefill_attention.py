# SPDX-License-Identifier: Apache-2.0
"""Attention of many rows after a kept prefix (prompts), and of a few under a mask (trees).

Letters: M rows, H query heads, Hkv key-value heads, d head width, S slots, T keys in sight.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels import build, driver, reference

log = logging.getLogger(__name__)

_SOURCE = "prefill_attention.cu"
_HEAD_DIMS = (64, 128)
_TILE_ROWS, _TILE_KEYS, _THREADS = 64, 64, 128
_MOST_PARTS = 8  # of the keys: one block joins them, which more parts make longer
_MOST_TILES = 4096  # of packed rows and key-value heads


def attention_rows(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_keys: int,
    mask: Tensor | None = None,
    *,
    may_plan: bool = True,
) -> Tensor:
    """q (M, H, d), caches (Hkv, S, d) -> (M, H d) over the first T = `num_keys` slots.

    Without `mask` (M, T), row m sees the keys [0, T - M + m]; with it, those where it is True.
    `may_plan`: cuDNN may plan for these numbers of rows and keys, once: 50 ms that pay for what is
    replayed, not for what is read once.
    """
    if query.dtype != torch.float16 or not build.is_fast(query) or not len(query):
        return reference.attention_rows(query, k_cache, v_cache, num_keys, mask)
    if mask is not None and query.shape[-1] in _HEAD_DIMS:
        return _attend_few(query, k_cache, v_cache, num_keys, mask)
    keys, values = k_cache[None, :, :num_keys], v_cache[None, :, :num_keys]
    if mask is not None:
        return _masked_attention(query, keys, values, mask)
    num_kept = num_keys - len(query)
    if may_plan and num_kept * 3 <= num_keys and _has_hopper_attention(query.device.index):
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


@functools.cache
def _few(index: int, width: int) -> tuple[driver.Kernel, bool, int]:
    """Kernel, whether it may begin before the one ahead ends, multiprocessors."""
    module = build.load(_SOURCE, {"HEAD_DIM": width}, index)
    properties = torch.cuda.get_device_properties(index)
    is_overlapping = properties.major >= 9
    return module.kernel("attend_rows"), is_overlapping, properties.multi_processor_count


_scratch: dict[int, list[tuple[Tensor, Tensor]]] = {}


def _room(device: torch.device, num_values: int) -> tuple[Tensor, Tensor]:
    """Parts and counters, kept; what became too small stays for graphs that point into it."""
    kept = _scratch.setdefault(device.index, [])
    if not kept or kept[-1][0].numel() < num_values:
        assert not torch.cuda.is_current_stream_capturing(), "attend once before capture"
        counters = torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)
        kept.append((torch.empty(num_values, device=device), counters))
    return kept[-1]


def _attend_few(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, num_keys: int, mask: Tensor
) -> Tensor:
    num_rows, num_heads, width = query.shape
    num_kv_heads, num_slots, _ = k_cache.shape
    assert k_cache.is_contiguous() and v_cache.is_contiguous()
    assert mask.dtype == torch.bool and mask.shape == (num_rows, num_keys)
    kernel, is_overlapping, num_multiprocessors = _few(query.device.index, width)
    shared = num_heads // num_kv_heads
    tiles = -(-shared * num_rows // _TILE_ROWS)
    assert tiles * num_kv_heads <= _MOST_TILES, f"{num_rows} rows are too many"
    parts = num_multiprocessors // (tiles * num_kv_heads)
    parts = max(1, min(parts, _MOST_PARTS, -(-num_keys // _TILE_KEYS)))
    values_per_thread = 4 * (width // 8 + 1)
    most = max(num_multiprocessors, tiles * num_kv_heads * parts) * values_per_thread * _THREADS
    partials, counters = _room(query.device, most)
    out = query.new_empty(num_rows, num_heads * width)
    kernel.launch(
        grid=(tiles, num_kv_heads, parts),
        block=(_THREADS,),
        args=[
            query.contiguous(),
            k_cache,
            v_cache,
            mask.contiguous(),
            out,
            partials,
            counters,
            num_rows,
            num_keys,
            num_slots,
            num_heads,
            shared,
            math.log2(math.e) / math.sqrt(width),
        ],
        shared_bytes=4 * _TILE_KEYS * width * 2,
        programmatic=is_overlapping,
    )
    return out


def ahead_of_time() -> Iterator[tuple[str, Mapping[str, object]]]:
    """Sources and defines that `python -m nvila_ros.kernels.build` compiles."""
    for width in _HEAD_DIMS:
        yield _SOURCE, {"HEAD_DIM": width}

# SPDX-License-Identifier: Apache-2.0
"""Attention of a tree of answers: few rows that see a whole prompt, and of each other their path.

Letters: R rows (at most 32), H query heads, Hkv key-value heads, d head width, S slots of a cache,
P slots of the prompt. In Triton: a small product between loads, which came with torch anyway; the
masked attention that torch has runs one block per head and is several times slower.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from nvila_ros.kernels import build, prefill

MOST_ROWS = 32  # bits of a path
_KEYS = 64  # of one block
_MOST_SPLITS = 128  # blocks whose finds one block merges: 8,192 places
_QUERIES = 64  # of one block: tree rows times the query heads that share a key-value head

_log = logging.getLogger(__name__)


def attend(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, num_prompt: int, mask: Tensor
) -> Tensor:
    """q (R, H, d), caches (Hkv, S, d) -> (R, H d); the rows' own keys lie at slots P to P + R.

    mask (R, P + R) bool, True where a row may look: everywhere in the prompt, and along its path.
    """
    num_rows, _, width = query.shape
    is_known = (
        num_rows <= MOST_ROWS
        and width in (64, 128)
        and num_prompt + num_rows <= _MOST_SPLITS * _KEYS
        and k_cache.is_contiguous()
        and v_cache.is_contiguous()
    )
    if not (is_known and query.dtype == torch.float16 and build.is_fast(query) and _has_triton()):
        return prefill.attention_rows(query, k_cache, v_cache, num_prompt + num_rows, mask)
    return _attend(query, k_cache, v_cache, num_prompt, mask)


def _attend(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, num_prompt: int, mask: Tensor
) -> Tensor:
    from nvila_ros.kernels import tree_attention_triton as triton_kernels

    num_rows, num_heads, width = query.shape
    num_kv_heads, num_slots, _ = k_cache.shape
    num_queries = num_rows * num_heads // num_kv_heads
    splits = -(-(num_prompt + num_rows) // _KEYS)
    tiles = -(-num_queries // _QUERIES)
    found = query.new_empty(
        (num_kv_heads, tiles * _QUERIES, splits, width + 2), dtype=torch.float32
    )
    paths = mask[:, num_prompt:].contiguous()  # (R, R)
    out = query.new_empty(num_rows, num_heads * width)
    triton_kernels.look[(splits, tiles, num_kv_heads)](
        query.contiguous(), k_cache, v_cache, paths.view(torch.uint8), found, width**-0.5,
        num_rows, num_heads, num_slots, num_prompt, num_queries,
        SHARED=num_heads // num_kv_heads, WIDTH=width, QUERIES=_QUERIES, KEYS=_KEYS, num_warps=4,
    )  # fmt: skip
    triton_kernels.merge[(num_queries, num_kv_heads)](
        found, out, splits, num_heads, tiles * _QUERIES,
        SHARED=num_heads // num_kv_heads, WIDTH=width, SPLITS=_power_of_two(splits), num_warps=4,
    )  # fmt: skip
    return out


def _power_of_two(number: int) -> int:
    """The next one up, at least 16: few variants to compile."""
    return max(16, 1 << (number - 1).bit_length())


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        _log.warning("Triton is not installed: torch's masked attention reads trees of answers")
        return False
    return True

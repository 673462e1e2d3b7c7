# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 - constants of a Triton kernel are written in capitals
"""The two kernels of `tree_attention`: blocks look at a few keys each, then their finds are merged.

found: (Hkv, queries, splits, d + 2) float32: weighted values, their weight, the largest score.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def look(
    query,  # (R, H, d)
    k_cache,  # (Hkv, S, d)
    v_cache,
    paths,  # (R, R) uint8: 1 where a row sees another one
    found,
    scale,
    num_rows,
    num_heads,
    num_slots,
    num_prompt,
    num_queries,
    SHARED: tl.constexpr,  # query heads of one key-value head
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """KEYS keys of one head for QUERIES queries: query i is row i // SHARED, head i % SHARED."""
    split, tile, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    queries = tile * QUERIES + tl.arange(0, QUERIES)
    row = queries // SHARED
    is_query = queries < num_queries
    columns = tl.arange(0, WIDTH)
    q_rows = query + (row * num_heads + head * SHARED + queries % SHARED) * WIDTH
    q = tl.load(q_rows[:, None] + columns[None, :], mask=is_query[:, None], other=0.0)
    keys = split * KEYS + tl.arange(0, KEYS)
    in_sight = keys < num_prompt + num_rows
    offsets = (head * num_slots + keys)[:, None].to(tl.int64) * WIDTH + columns[None, :]
    k = tl.load(k_cache + offsets, mask=in_sight[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale  # (QUERIES, KEYS)
    in_tree = keys >= num_prompt
    on_path = tl.load(
        paths + row[:, None] * num_rows + (keys - num_prompt)[None, :],
        mask=is_query[:, None] & (in_tree & in_sight)[None, :],
        other=0,
    )
    visible = (keys < num_prompt)[None, :] | (on_path != 0)
    scores = tl.where(visible, scores, float("-inf"))
    best = tl.max(scores, 1)
    best = tl.where(best == float("-inf"), 0.0, best)  # nothing in sight: all weights are 0
    weights = tl.exp(scores - best[:, None])
    total = tl.sum(weights, 1)
    v = tl.load(v_cache + offsets, mask=in_sight[:, None], other=0.0)
    mixed = tl.dot(weights.to(v.dtype), v)
    places = (head * tl.num_programs(1) * QUERIES + queries) * tl.num_programs(0) + split
    places = places * (WIDTH + 2)
    tl.store(found + places[:, None] + columns[None, :], mixed, mask=is_query[:, None])
    tl.store(found + places + WIDTH, total, mask=is_query)
    tl.store(found + places + WIDTH + 1, best, mask=is_query)


@triton.jit
def merge(
    found,
    out,  # (R, H d)
    splits,
    num_heads,
    queries_of_head,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,  # a power of two, at least `splits`
):
    """One query: the splits' values by their weights."""
    query, head = tl.program_id(0), tl.program_id(1)
    columns, split = tl.arange(0, WIDTH), tl.arange(0, SPLITS)
    is_split = split < splits
    places = ((head * queries_of_head + query) * splits + split) * (WIDTH + 2)
    best = tl.load(found + places + WIDTH + 1, mask=is_split, other=float("-inf"))
    shares = tl.exp(best - tl.max(best, 0))  # (SPLITS,)
    total = tl.load(found + places + WIDTH, mask=is_split, other=0.0)
    mixed = tl.load(
        found + places[:, None] + columns[None, :], mask=is_split[:, None], other=0.0
    )  # (SPLITS, d)
    value = tl.sum(mixed * shares[:, None], 0) / tl.sum(total * shares, 0)
    row = query // SHARED
    target = out + (row * num_heads + head * SHARED + query % SHARED) * WIDTH
    tl.store(target + columns, value.to(out.dtype.element_ty))

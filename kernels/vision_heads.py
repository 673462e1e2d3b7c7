# SPDX-License-Identifier: Apache-2.0
"""How q, k and v lie between their product and attention on Hopper: twin of `vision_heads.cuh`."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 72  # columns of a head: 64 high ones and 8 low ones
BLOCK = 128  # tokens that are copied together
HIGH_BYTES = BLOCK * 128  # of a block's high columns
LOW_BYTES = BLOCK * 32  # of a block's low columns of q or k; half of them stays zero
VALUE_LOW_BYTES = BLOCK * 128  # of the low columns of a whole head of v
MOST_BLOCKS = 8
_PARTS = WIDTH // 8  # of 16 bytes


def num_blocks(tokens: int) -> int:
    """Blocks of a head's tokens; the last may be filled in part."""
    return -(-tokens // BLOCK)


def num_bytes(tokens: int) -> int:
    """Of one head of q, k or v."""
    blocks = num_blocks(tokens)
    return blocks * HIGH_BYTES + max(blocks * LOW_BYTES, VALUE_LOW_BYTES)


def is_supported(tokens: int, width: int) -> bool:
    """Whether heads of this width over so many tokens have this layout."""
    return width == WIDTH and num_blocks(tokens) <= MOST_BLOCKS


def part_offsets(tokens: int, *, is_value: bool) -> Tensor:
    """(P, 9) int64: the byte of a head where each token's 8 columns from 8 * part begin."""
    token = torch.arange(tokens)[:, None]
    part = torch.arange(_PARTS - 1)[None, :]
    high = token * 128 + ((part ^ (token & 7)) << 4)
    if is_value:
        low = token % BLOCK * 128 + ((token // BLOCK ^ (token & 7)) << 4)
    else:
        low = token * 32 + ((token >> 2 & 1) << 4)
    return torch.cat([high, num_blocks(tokens) * HIGH_BYTES + low], dim=1)


def empty(frames: int, tokens: int, num_heads: int, device: torch.device) -> Tensor:
    """(F, 3 * heads, bytes / 2) float16 zeros: what is never written has to be finite."""
    shape = (frames, 3 * num_heads, num_bytes(tokens) // 2)
    return torch.zeros(shape, dtype=torch.float16, device=device)


def from_rows(qkv: Tensor, num_heads: int) -> Tensor:
    """(F, P, 3 * heads * 72) float16, q, k and v side by side -> (F, 3 * heads, bytes / 2)."""
    frames, tokens = qkv.shape[:2]
    heads = empty(frames, tokens, num_heads, qkv.device)
    split = qkv.view(frames, tokens, 3 * num_heads, WIDTH).transpose(1, 2)
    parts = split.reshape(frames, 3 * num_heads, tokens * _PARTS, 8)
    for index in range(3):
        offsets = part_offsets(tokens, is_value=index == 2).flatten().to(qkv.device)
        rows = slice(index * num_heads, (index + 1) * num_heads)
        vectors = heads[:, rows].view(frames, num_heads, -1, 8)
        vectors[:, :, offsets // 16] = parts[:, rows]
    return heads

# SPDX-License-Identifier: Apache-2.0
"""What a decoder has read and keeps: the fixed cache, and which tokens and features it is of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nvila_ros.models.config import LanguageConfig
from nvila_ros.models.language import rotary_table

Place = int | tuple[int, int]  # a text token, or (identity of a block, its row)


def on_device(values: Sequence, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host on the device; waits for nothing that the device still does."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


@dataclass(frozen=True)
class Sequence1D:
    """A fused prompt: one place per row of embeddings, and the blocks that places stand for."""

    places: tuple[Place, ...]
    blocks: dict[int, Tensor] = field(default_factory=dict)  # by identity; (T, D)

    def __len__(self) -> int:
        return len(self.places)

    def followed_by(self, tokens: Sequence[int]) -> Sequence1D:
        """The same with text after it."""
        return Sequence1D((*self.places, *tokens), self.blocks)

    def num_shared(self, other: Sequence1D) -> int:
        """Rows at the start that both have: the same tokens, and rows of the very same blocks."""
        for index, (mine, its) in enumerate(zip(self.places, other.places, strict=False)):
            if mine != its:
                return index
        return min(len(self), len(other))

    def embed(self, table: Tensor, start: int = 0) -> Tensor:
        """Rows from `start` on -> (L - start, D) in the table's dtype and device."""
        places = self.places[start:]
        text = [place for place in places if isinstance(place, int)]
        words = table[on_device(text, torch.long, table.device)]  # (N, D)
        pieces: list[Tensor] = []
        index = num_words = 0
        while index < len(places):
            place = places[index]
            end = index + 1
            if isinstance(place, int):
                while end < len(places) and isinstance(places[end], int):
                    end += 1
                pieces.append(words[num_words : num_words + end - index])
                num_words += end - index
            else:
                identity, row = place
                while end < len(places) and places[end] == (identity, row + end - index):
                    end += 1
                pieces.append(self.blocks[identity][row : row + end - index].to(words))
            index = end
        return torch.cat(pieces) if pieces else words


def fuse(
    input_ids: Sequence[int],
    media: Sequence[Tensor],
    media_ids: Collection[int],
    newline_ids: Sequence[int],
) -> Sequence1D:
    """Token ids and one (T, D) block per media id -> the fused prompt; see `Nvila.embed`.

    A block is known by its tensor object, which must not be written to afterwards.
    """
    num_expected = sum(token in media_ids for token in input_ids)
    if num_expected != len(media):
        raise ValueError(
            f"the prompt has places for {num_expected} images or frames, got {len(media)}"
        )
    places: list[Place] = []
    blocks: dict[int, Tensor] = {}
    waiting = iter(media)
    for token in input_ids:
        if token in media_ids:
            block = next(waiting)
            blocks[id(block)] = block
            places += [(id(block), row) for row in range(len(block))]
            places += newline_ids
        else:
            places.append(token)
    return Sequence1D(tuple(places), blocks)


class FixedCache:
    """Keys and values of `max_tokens` places per layer, and what the first of them were read from.

    `held` keeps the blocks of its places alive, so that an identity is never taken by another.
    """

    def __init__(
        self, config: LanguageConfig, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, max_tokens, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.max_tokens = max_tokens
        cosines, sines = rotary_table(config, torch.arange(max_tokens, device=device))
        half = config.head_dim // 2
        self.cos_sin = torch.cat((cosines[:, :half], sines[:, :half]), dim=1)  # (S, d) float32
        self.held = Sequence1D(())

    @property
    def num_bytes(self) -> int:
        """Of keys, values and the table of angles."""
        return self.keys.nbytes + self.values.nbytes + self.cos_sin.nbytes

    def reuse(self, wanted: Sequence1D) -> int:
        """Rows of `wanted` that need no reading; at least one is read, for what follows it.

        From here on the cache is of these rows only, until `hold` says what was read.
        """
        shared = min(self.held.num_shared(wanted), len(wanted) - 1)
        self.held = Sequence1D(self.held.places[:shared], self.held.blocks)
        return shared

    def hold(self, read: Sequence1D) -> None:
        """The cache's first rows are of this sequence now."""
        self.held = read

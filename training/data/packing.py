# SPDX-License-Identifier: Apache-2.0
"""Several samples in one sequence: attention stays within each, positions restart with each."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nvila_ros.errors import DataError
from nvila_ros.training.data.encoding import IGNORED, Encoded, Media, pixel_values


@dataclass(frozen=True)
class PackedBatch:
    """One packed sequence of L tokens; the padding at its end is a segment of its own."""

    ids: Tensor  # (L,) int64
    labels: Tensor  # (L,) int64, the id itself where it is learned; IGNORED at each sample's start
    weights: Tensor  # (L,) float32 of each label in the loss: its sample's weight, 0 where ignored
    positions: Tensor  # (L,) int64 from 0 within each sample
    sample_ids: Tensor  # (L,) int32 number of the sample in the batch, -1 on padding
    target_rows: Tensor  # (M,) int64 places whose `targets` are learned: found without a device
    lengths: tuple[int, ...]  # of the samples, in order
    pixels: Tensor  # (F, 3, S, S) uint8 tiles, equal ones once; float in [-1, 1] after `to`
    tile_rows: Tensor  # (N,) int64 row of `pixels` of each tile, in the order of the media
    media: tuple[Media, ...]  # what the tiles stand for, in order
    places: Tensor  # (p,) int64 where features go, in the order of media and their tokens
    num_tiles: tuple[int, ...]  # of the samples
    keys: tuple[str, ...]  # of the samples
    sources: tuple[str, ...]  # of the samples

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_padding(self) -> int:
        """Tokens at the end that belong to no sample."""
        return len(self.ids) - sum(self.lengths)

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths that add up to L: the samples', then the padding's."""
        return (*self.lengths, self.num_padding) if self.num_padding else self.lengths

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is over."""
        return int((self.labels != IGNORED).sum())

    @property
    def targets(self) -> Tensor:
        """(L,) int64: what each place is to predict, `labels` one to the left.

        Needs no boundary rule: every sample's first label is IGNORED.
        """
        return torch.cat((self.labels[1:], self.labels.new_full((1,), IGNORED)))

    @property
    def target_weights(self) -> Tensor:
        """(L,) float32 beside `targets`."""
        return torch.cat((self.weights[1:], self.weights.new_zeros(1)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PackedBatch:
        """On a device; with a `dtype` the pixels become floats in [-1, 1] there."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        if dtype is not None and self.pixels.dtype == torch.uint8:
            moved["pixels"] = pixel_values(moved["pixels"], dtype)
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> PackedBatch:
        """In page-locked memory, for the loader."""
        pinned = {
            field.name: getattr(self, field.name).pin_memory()
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **pinned)


def pack(
    samples: Sequence[Encoded], *, length: int | None = None, multiple: int = 1
) -> PackedBatch:
    """Lays samples out one after another.

    `length` pads to a fixed length, `multiple` to the next multiple of it (FP8 wants 128).
    """
    if not samples:
        raise DataError("there is nothing to pack; at least one sample is expected")
    lengths = tuple(len(sample) for sample in samples)
    used = sum(lengths)
    total = used if length is None else length
    total += -total % multiple
    if used > total:
        raise DataError(f"{used} tokens do not fit a sequence of {total}; pack fewer samples")
    pad = total - used
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    pixels, tile_rows = _distinct(torch.cat([sample.tiles for sample in samples]))
    labels = [sample.labels.clone() for sample in samples]
    for part in labels:
        part[0] = IGNORED
    weights = [
        (part != IGNORED).float() * s.weight for part, s in zip(labels, samples, strict=True)
    ]
    all_labels = torch.cat([*labels, _full(pad, IGNORED)])
    return PackedBatch(
        ids=torch.cat([*(sample.ids for sample in samples), _full(pad, int(samples[0].ids[0]))]),
        labels=all_labels,
        weights=torch.cat([*weights, torch.zeros(pad)]),
        positions=torch.cat([torch.arange(count) for count in (*lengths, pad)]),
        sample_ids=torch.cat(
            [
                *(_full(count, number).int() for number, count in enumerate(lengths)),
                _full(pad, -1).int(),
            ]
        ),
        target_rows=(all_labels[1:] != IGNORED).nonzero().squeeze(-1),
        lengths=lengths,
        pixels=pixels,
        tile_rows=tile_rows,
        media=tuple(media for sample in samples for media in sample.media),
        places=torch.cat([s.places + start for s, start in zip(samples, starts, strict=True)]),
        num_tiles=tuple(len(sample.tiles) for sample in samples),
        keys=tuple(sample.key for sample in samples),
        sources=tuple(sample.source for sample in samples),
    )


def _distinct(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, S, S) -> the distinct tiles in order, and the row of each among them.

    Black padding and the frames that decisions of one episode share are encoded once.
    """
    rows: dict[bytes, int] = {}
    firsts: list[int] = []
    index = torch.empty(len(tiles), dtype=torch.long)
    for number, tile in enumerate(tiles.numpy()):
        digest = hashlib.blake2b(tile.data, digest_size=16).digest()
        if digest not in rows:
            rows[digest] = len(firsts)
            firsts.append(number)
        index[number] = rows[digest]
    return (tiles if len(firsts) == len(tiles) else tiles[firsts]), index


def _full(count: int, value: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.long)


def fill_bins(
    lengths: Sequence[int],
    capacity: int,
    max_cost: int | None = None,
    costs: Sequence[int] | None = None,
) -> list[list[int]]:
    """First-fit decreasing: which samples share a sequence of at most `capacity` tokens.

    `costs` with `max_cost` bound a second quantity per bin (tiles, whose activations need memory).
    Within a bin samples keep their order; bins are in the order of their first sample.
    """
    costs = [0] * len(lengths) if costs is None else costs
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    bins: list[list[int]] = []
    room: list[int] = []
    left: list[int] = []
    most = max_cost if max_cost is not None else sum(costs)
    for index in order:
        need, cost = lengths[index], costs[index]
        if need > capacity or cost > most:
            raise DataError(
                f"a sample of {need} tokens and {cost} tiles does not fit {capacity} tokens and "
                f"{most} tiles; raise the limits or show fewer pictures"
            )
        fitting = (b for b in range(len(bins)) if room[b] >= need and left[b] >= cost)
        chosen = next(fitting, None)
        if chosen is None:
            bins.append([])
            room.append(capacity)
            left.append(most)
            chosen = len(bins) - 1
        bins[chosen].append(index)
        room[chosen] -= need
        left[chosen] -= cost
    return sorted(sorted(members) for members in bins)


def padding_share(lengths: Sequence[int], bins: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of places that hold no sample when every bin is a sequence of `capacity` tokens."""
    return 1.0 - sum(lengths) / (len(bins) * capacity) if bins else 0.0

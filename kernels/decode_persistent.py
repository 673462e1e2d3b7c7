# SPDX-License-Identifier: Apache-2.0
"""All layers of a decode step in one launch, for GPUs whose blocks can wait for each other."""

from __future__ import annotations

import ctypes
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.kernels import build, driver
from nvila_ros.kernels.decode_persistent_plan import PHASES, TILE_KEYS, Cut
from nvila_ros.kernels.packing import RowsInt4

log = logging.getLogger(__name__)
SOURCE = "decode_persistent.cu"
PLACES, FINALISTS = 24, 4  # in memory that are tried for the exchange, and tried again
APART_BYTES = 1 << 20  # from place to place: half of a block of torch's small tensors
TIMED_STEPS = 12  # in a series, after one that is not timed
FINAL_ROUNDS = 3  # there and back


class Arguments(ctypes.Structure):
    """The source's `Arguments`: pointers, then numbers."""

    _fields_ = (
        ("pointers", ctypes.c_void_p * 10),
        ("cache_length", ctypes.c_int),
        ("eps", ctypes.c_float),
    )


class HeadArguments(ctypes.Structure):
    """The source's `Head`: norm, scales, history; the number of tokens."""

    _fields_ = (("pointers", ctypes.c_void_p * 3), ("num_tokens", ctypes.c_int))


@dataclass(frozen=True)
class Exchange:
    """Where blocks leave each other values; all 0 before the first launch."""

    words: Tensor
    found: Tensor  # of attention; then each block's best token
    epochs: Tensor


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """What turns the last layer's output into the next token."""

    norm: Tensor  # (D,) float16
    rows: Tensor  # (V, D) int8
    scales: Tensor  # (V,) float32


class PersistentLayers:
    """The launch and its fixed buffers.

    Scales and zero points are kept a second time, in the order in which blocks read them: 6 % of
    the weights' bytes. One stream at a time: two launches at once would read each other's words.
    `cut` may be replaced by one that differs in `has_head` or `asks_first` between launches.
    """

    def __init__(
        self, cut: Cut, matrices: Sequence[Sequence[RowsInt4]],
        vectors: Sequence[tuple[Tensor | None, Tensor, Tensor]], keys: Tensor, values: Tensor,
        head: HeadWeights | None = None,
    ) -> None:  # fmt: skip
        """matrices: qkv, output, gate_up, down of each layer; vectors: qkv's bias, both norms.

        head: what a launch needs whose cut `has_head`.
        """
        self.cut = cut
        self.head = head
        self._kept = (matrices, vectors, keys, values)  # the table holds bare addresses
        self._cache_length = keys.shape[2]
        rows = []
        for index, (bias, *norms) in enumerate(vectors):
            parts = [bias, *norms, keys[index], values[index]]
            rows.append([0 if part is None else part.data_ptr() for part in parts])
        where, sizes = keys.device, cut.sizes
        self._layers = torch.tensor(rows, dtype=torch.int64, device=where)
        num_halves = sizes.num_layers * cut.layer_scale_bytes // 2
        self._scales = torch.empty(num_halves, dtype=torch.float16, device=where)
        start = 0
        for layer in matrices:
            for phase in PHASES:
                packed = cut.pack_scales(phase, layer[phase].scale_zero).flatten()
                self._scales[start : start + packed.numel()] = packed
                start += packed.numel()
        self.exchange = self.new_exchange()
        self._maps = self._make_maps(self._boxes(matrices, keys, values))

    def new_exchange(self) -> Exchange:
        """Other buffers; a launch uses those that `exchange` names then."""
        where, sizes = self._layers.device, self.cut.sizes
        num_found = sizes.num_heads * self.cut.max_splits * sizes.head_dim + 4 * self.cut.num_blocks
        return Exchange(
            words=torch.zeros(sizes.num_words, dtype=torch.int64, device=where),
            found=torch.zeros(num_found, dtype=torch.int32, device=where),
            epochs=torch.zeros(self.cut.num_blocks, dtype=torch.int32, device=where),
        )

    def _boxes(
        self, matrices: Sequence[Sequence[RowsInt4]], keys: Tensor, values: Tensor
    ) -> list[tuple[Tensor, tuple[int, int, int, int]]]:
        """What the copy engine reads, words in four dimensions, and in which boxes."""
        found = [
            (self.cut.view(phase, layer[phase].qweight), self.cut.box(phase))
            for layer in matrices
            for phase in PHASES
        ]
        tile = (1, 1, TILE_KEYS, 32)
        found += [(keys.view(torch.int32), tile), (values.view(torch.int32), tile)]
        if self.head is not None:
            found.append((self.head.rows.view(torch.int32)[None, None], self.cut.head_box))
        return found

    def _make_maps(
        self, boxes: Sequence[tuple[Tensor, tuple[int, ...]]]
    ) -> ctypes.Array[driver.TensorMap]:
        """The source's `Maps`; of the head: nothing, where there is none."""
        maps = [driver.tensor_map(tensor, box, swizzle=128) for tensor, box in boxes]
        return (driver.TensorMap * self.num_maps)(*maps)

    @property
    def num_maps(self) -> int:
        """Of every matrix, keys, values and the head."""
        return self.cut.sizes.num_layers * len(PHASES) + 3

    def arguments(
        self, token: Tensor, place: Tensor, table: Tensor, cos_sin: Tensor, hidden: Tensor,
        eps: float,
    ) -> Arguments:  # fmt: skip
        """token (1,), place (2,) int32; the rest as `launch` takes it."""
        tensors = (
            self._layers, self._scales, token, place, table, cos_sin, hidden,
            self.exchange.words, self.exchange.found, self.exchange.epochs,
        )  # fmt: skip
        addresses = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        return Arguments(addresses, self._cache_length, eps)

    def head_arguments(self, history: Tensor | None) -> HeadArguments:
        """Nothing where the launch has no head."""
        if not self.cut.has_head:
            return HeadArguments()
        assert self.head is not None and history is not None
        tensors = (self.head.norm, self.head.scales, history)
        addresses = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        return HeadArguments(addresses, len(self.head.rows))

    def launch(
        self, token: Tensor, place: Tensor, table: Tensor, cos_sin: Tensor, hidden: Tensor,
        eps: float, history: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Embeds the token and runs every layer; `hidden` (1, D) is the last one's output.

        Where the cut `has_head`: goes on to the next token, which it writes over `token` and into
        `history` (S + 1,) int32 at its position, and to the next place.
        """
        build.load(SOURCE, self.cut.defines).kernel("decode_step").launch(
            grid=(self.cut.num_blocks,),
            block=(32 * self.cut.num_warps,),
            args=[
                self.arguments(token, place, table, cos_sin, hidden, eps),
                self._maps,
                self.head_arguments(history),
            ],
            shared_bytes=self.cut.shared_bytes,
            cooperative=True,
        )


def settle(layers: PersistentLayers, series_ms: Callable[[], float]) -> None:
    """Leaves `layers` with the exchange at the fastest of PLACES places.

    Where blocks meet decides up to 2 % of a step either way, and only trying tells
    (docs/benchmarks/engine_notes.md). series_ms: a step's time in a series of whole steps.
    """
    device = layers.exchange.words.device
    exchanges, between = [layers.exchange], []
    for _ in range(PLACES - 1):
        between.append(torch.empty(APART_BYTES, dtype=torch.uint8, device=device))
        exchanges.append(layers.new_exchange())
    times: list[list[float]] = [[] for _ in exchanges]

    def go_round(places: Sequence[int]) -> None:
        for place in (*places, *reversed(places)):  # there and back: the clock may drift
            layers.exchange = exchanges[place]
            times[place].append(series_ms())

    go_round(range(PLACES))
    finalists = sorted(range(PLACES), key=lambda place: min(times[place]))[:FINALISTS]
    for _ in range(FINAL_ROUNDS):
        go_round(finalists)
    medians = {place: statistics.median(times[place]) for place in finalists}
    layers.exchange = exchanges[min(medians, key=medians.__getitem__)]
    log.debug(
        "exchange at the best of %d places: ms %s, of the best again %s",
        PLACES, sorted(map(min, times)), sorted(medians.values()),
    )  # fmt: skip


def steps_ms(launch: Callable[[], None]) -> float:
    """One of TIMED_STEPS launches after one that is not timed, on the current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    launch()
    begin.record()
    for _ in range(TIMED_STEPS):
        launch()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / TIMED_STEPS

# SPDX-License-Identifier: Apache-2.0
"""From sources to packed batches, in worker processes, resumable between any two batches."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.augmentation import Augmentation, AugmentationConfig
from nvila_ros.training.data.encoding import Encoded, encode
from nvila_ros.training.data.packing import PackedBatch, fill_bins, pack
from nvila_ros.training.data.stream import (
    BrokenRow,
    Guard,
    MixtureStream,
    Part,
    Source,
    State,
)


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """How samples become batches."""

    # Tokens of one packed sequence; a longer sample loses its last turns, or is a broken row.
    max_tokens: int = 4096
    # Tiles of one packed sequence at most; None: as many as come.
    max_tiles: int | None = None
    # Samples that are looked at together to fill sequences; more waste less and mix wider.
    window: int = 64
    # Several samples per sequence; False: one each, for comparison.
    packs: bool = True
    # Pad every sequence to `max_tokens`: constant shapes, one compilation.
    fixed_length: bool = False
    # Pad to a multiple of this many tokens (FP8 kernels: 128).
    multiple: int = 1
    # Processes that read, decode and encode; 0: in this one.
    num_workers: int = 2
    # Batches that each process holds ready.
    prefetch: int = 2
    # How processes start; a renderer's context does not survive a fork.
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    # Share of rows that may be broken before the run ends with an error.
    max_broken_share: float = 0.01
    # Order, mixture and augmentation.
    seed: int = 0
    # Passes over finite sources; None: without end.
    epochs: int | None = None
    # Whether batches are put in page-locked memory.
    pins_memory: bool = False
    augmentation: AugmentationConfig | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "window", "multiple", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is expected")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers is {self.num_workers}; 0 or more are expected")


class BatchStream:
    """Packed batches of one part of the sources, in this process."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        tokenizer: Tokenizer,
        config: NvilaConfig,
        settings: LoaderSettings,
        part: Part,
    ) -> None:
        self.tokenizer, self.config, self.settings, self.part = tokenizer, config, settings, part
        streams = {
            name: source.open(part, settings.seed, epochs=settings.epochs)
            for name, source in sources.items()
        }
        mixture = MixtureStream(streams, weights, settings.seed * 65_537 + part.index)
        self.guard = Guard(mixture, settings.max_broken_share)
        self._augmentation = Augmentation.maybe(settings.augmentation, settings.seed)
        self._window_start: State | None = None
        self._window = self._num_emitted = 0
        self._waiting: list[list[Encoded]] = []

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        while not self._waiting:
            self._fill()
        self._num_emitted += 1
        settings = self.settings
        return pack(
            self._waiting.pop(),
            length=settings.max_tokens if settings.fixed_length else None,
            multiple=settings.multiple,
        )

    def _fill(self) -> None:
        """The next window of samples, laid into sequences; StopIteration at the end."""
        self._window_start = self.guard.state_dict()
        self._num_emitted = 0
        samples: list[Encoded] = []
        while len(samples) < self.settings.window:
            try:
                samples += self._encoded()
            except StopIteration:
                break
        if not samples:
            raise StopIteration
        settings = self.settings
        if settings.packs:
            lengths = [len(sample) for sample in samples]
            tiles = [len(sample.tiles) for sample in samples]
            bins = fill_bins(lengths, settings.max_tokens, settings.max_tiles, tiles)
        else:
            bins = [[index] for index in range(len(samples))]
        order = np.random.default_rng(
            [settings.seed, 14, self.part.index, self._window]
        ).permutation(len(bins))
        self._waiting = [[samples[index] for index in bins[number]] for number in order]
        self._window += 1

    def _encoded(self) -> list[Encoded]:
        """The next sample as a list of one, or an empty one where its row is broken."""
        sample = next(self.guard)
        try:
            limit = min(self.settings.max_tokens, self.config.language.model_max_length)
            encoded = encode(
                sample, self.tokenizer, self.config, augment=self._changed, max_length=limit
            )
            if self.settings.max_tiles is not None and len(encoded.tiles) > self.settings.max_tiles:
                raise DataError(
                    f"{sample.key}: {len(encoded.tiles)} tiles, max_tiles is "
                    f"{self.settings.max_tiles}"
                )
        except DataError as error:
            self.guard.report(BrokenRow(sample.source, "decoding", sample.key, str(error)))
            return []
        return [encoded]

    def _changed(self, pictures: list[Image.Image], key: str) -> list[Image.Image]:
        """Augmented by the sample's key and the window: another way each time it comes by."""
        if self._augmentation is None:
            return pictures
        return self._augmentation(pictures, f"{key}@{self._window}")

    def state_dict(self) -> State:
        """The window under way and how much of it is out."""
        if self._window_start is None:
            return {"start": self.guard.state_dict(), "window": 0, "emitted": 0}
        return {
            "start": self._window_start,
            "window": self._window - 1,
            "emitted": self._num_emitted,
        }

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says: reads the window again and drops what is out."""
        self.guard.load_state_dict(state["start"])
        self._window, self._waiting = state["window"], []
        if not state["emitted"]:
            self._window_start = None if not state["window"] else state["start"]
            self._num_emitted = 0
            return
        self._fill()
        del self._waiting[len(self._waiting) - state["emitted"] :]
        self._num_emitted = state["emitted"]


@dataclass
class LoaderCounts:
    """What the loader saw since it was made."""

    wait_s: float = 0.0  # the caller waited for batches
    num_batches: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    num_padding: int = 0
    num_broken: int = 0  # rows, of all workers


@dataclass
class _Worker:
    """What one worker process needs; sent to it."""

    sources: Mapping[str, Source]
    weights: Mapping[str, float]
    tokenizer: Tokenizer
    config: NvilaConfig
    settings: LoaderSettings
    parts: list[Part]  # by position in the round
    states: list[State | None]

    def stream(self, position: int) -> BatchStream:
        stream = BatchStream(
            self.sources,
            self.weights,
            self.tokenizer,
            self.config,
            self.settings,
            self.parts[position],
        )
        state = self.states[position]
        if state is not None:
            stream.load_state_dict(state)
        return stream


class _WorkerDataset(IterableDataset):
    """Batches with the state after each, as json; an error as a text, since traces confuse."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker

    def __iter__(self) -> Iterator[tuple[PackedBatch | None, str, int]]:
        info = torch.utils.data.get_worker_info()
        assert info is not None, "only worker processes iterate over it"
        torch.set_num_threads(1)
        # A spawned process would run C++ destructors at its end, and abort in a library's: it ends
        # like a forked one, after its queues are flushed.
        Finalize(None, os._exit, args=(0,), exitpriority=-1000)
        try:
            stream = self.worker.stream(info.id)
            for batch in stream:
                yield batch, json.dumps(stream.state_dict()), stream.guard.num_broken
        except DataError as error:
            yield None, str(error), 0


class Loader:
    """Packed batches of one rank; `state_dict` is always that after the last batch given out."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        tokenizer: Tokenizer,
        config: NvilaConfig,
        settings: LoaderSettings | None = None,
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.settings = settings or LoaderSettings()
        self.num_streams = max(1, self.settings.num_workers)
        parts = [
            Part.of(rank, num_ranks, worker, self.num_streams) for worker in range(self.num_streams)
        ]
        self.worker = _Worker(
            sources, weights, tokenizer, config, self.settings, parts, [None] * self.num_streams
        )
        self.counts = LoaderCounts()
        self._states: list[State | None] = [None] * self.num_streams
        self._broken = [0] * self.num_streams
        self._turn = 0  # whose batch is next
        self._batches: Iterator[PackedBatch] | None = None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> PackedBatch:
        if self._batches is None:
            self._batches = self._in_processes() if self.settings.num_workers else self._here()
        begin_s = time.perf_counter()
        batch = next(self._batches)
        counts = self.counts
        counts.wait_s += time.perf_counter() - begin_s
        counts.num_batches += 1
        counts.num_samples += len(batch.lengths)
        counts.num_tokens += len(batch)
        counts.num_padding += batch.num_padding
        counts.num_broken = sum(self._broken)
        return batch

    def _here(self) -> Iterator[PackedBatch]:
        self.worker.states = self._states
        self._stream = self.worker.stream(0)
        for batch in self._stream:
            self._broken[0] = self._stream.guard.num_broken
            yield batch

    def _in_processes(self) -> Iterator[PackedBatch]:
        """Batches of the processes in turn; whoever is next now is the first process."""
        count = self.num_streams
        order = [(self._turn + position) % count for position in range(count)]
        worker = self.worker
        sent = _Worker(
            worker.sources,
            worker.weights,
            worker.tokenizer,
            worker.config,
            worker.settings,
            [worker.parts[number] for number in order],
            [self._states[number] for number in order],
        )
        loader = DataLoader(
            _WorkerDataset(sent),
            batch_size=None,
            num_workers=count,
            prefetch_factor=self.settings.prefetch,
            multiprocessing_context=self.settings.start_method,
        )
        for batch, text, num_broken in loader:
            if batch is None:
                raise DataError(text)
            self._states[self._turn] = json.loads(text)
            self._broken[self._turn] = num_broken
            self._turn = (self._turn + 1) % count
            yield batch.pin_memory() if self.settings.pins_memory else batch

    def state_dict(self) -> State:
        """Where every worker stands after the batches that were given out."""
        if not self.settings.num_workers and self._batches is not None:
            self._states[0] = self._stream.state_dict()
        return {"workers": list(self._states), "turn": self._turn}

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says; DataError with other workers than it was saved with."""
        if len(state["workers"]) != self.num_streams:
            raise DataError(
                f"the state is of {len(state['workers'])} workers, this loader has "
                f"{self.num_streams}; resume with num_workers={len(state['workers'])}"
            )
        self._states, self._turn = list(state["workers"]), state["turn"]
        self._batches = None

    def close(self) -> None:
        """Ends the worker processes."""
        self._batches = None

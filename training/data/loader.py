# SPDX-License-Identifier: Apache-2.0
"""From sources to packed batches, in worker processes, resumable between any two batches."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.util import Finalize

import torch
from torch.utils.data import DataLoader, IterableDataset

from nvila_ros.errors import DataError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.batch_stream import BatchStream, LoaderSettings
from nvila_ros.training.data.packing import PackedBatch
from nvila_ros.training.data.stream import (
    Part,
    Source,
    State,
)


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

# SPDX-License-Identifier: Apache-2.0
"""Streams of samples that can stop anywhere and go on exactly there; lists and mixtures of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.training.data.sample import Sample

State = dict[str, Any]  # what json can hold


@dataclass(frozen=True)
class Part:
    """Which share of a source a reader takes: ranks and their workers are counted together."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"part {self.index} of {self.count} does not exist; count from 0")

    @classmethod
    def of(cls, rank: int, num_ranks: int, worker: int = 0, num_workers: int = 1) -> Part:
        """The share of one worker of one rank."""
        return cls(rank * num_workers + worker, num_ranks * num_workers)


class SampleStream(Protocol):
    """An iterator of samples whose state can be saved between any two of them.

    A fresh stream of the same source, part and seed that loads the state yields the same samples
    from there on. Every item may also be a `BrokenRow`: the reader goes on after it.
    """

    def __iter__(self) -> Iterator[Sample | BrokenRow]:
        """Itself."""

    def __next__(self) -> Sample | BrokenRow:
        """The next sample; StopIteration at the end of a finite stream."""

    def state_dict(self) -> State:
        """Where the stream stands, as what json can hold."""

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says; DataError where it is of another stream."""


class Source(Protocol):
    """A data set that readers open parts of; must be picklable, cheap to make."""

    @property
    def name(self) -> str:
        """What the mixture calls it."""

    def open(self, part: Part, seed: int, *, epochs: int | None = None) -> SampleStream:
        """The samples of a part, shuffled anew by `seed` each epoch; None: without end."""


@dataclass(frozen=True)
class BrokenRow:
    """A row that could not be read: where it is and why. Counted, and an error beyond a share."""

    source: str
    where: str  # shard or file
    row: str  # key or index of the row
    reason: str


class ListStream:
    """Samples in memory, shuffled each epoch; part i of n takes every n-th of the epoch's order."""

    def __init__(
        self,
        samples: Sequence[Sample | BrokenRow],
        part: Part | None = None,
        seed: int = 0,
        *,
        epochs: int | None = None,
        shuffle: bool = True,
    ) -> None:
        part = part or Part()
        if len(samples) < part.count and epochs is None:
            raise DataError(
                f"{len(samples)} samples cannot be shared by {part.count} readers; "
                "use fewer workers or ranks"
            )
        self.samples, self.part, self.seed = samples, part, seed
        self.epochs, self.shuffle = epochs, shuffle
        self.epoch, self.place = 0, 0
        self._order = self._order_of(0)

    def _order_of(self, epoch: int) -> np.ndarray:
        count = len(self.samples)
        order = np.arange(count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, 11, epoch]).permutation(count)
        return order[self.part.index :: self.part.count]

    def __iter__(self) -> ListStream:
        return self

    def __next__(self) -> Sample | BrokenRow:
        if self.place >= len(self._order):
            self.epoch, self.place = self.epoch + 1, 0
            self._order = self._order_of(self.epoch)
        if not len(self._order) or (self.epochs is not None and self.epoch >= self.epochs):
            raise StopIteration
        self.place += 1
        return self.samples[self._order[self.place - 1]]

    def state_dict(self) -> State:
        """Epoch and place in its order."""
        return {"epoch": self.epoch, "place": self.place, "count": len(self.samples)}

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says."""
        if state.get("count") != len(self.samples):
            raise DataError(
                f"the state is of a list of {state.get('count')} samples, this one has "
                f"{len(self.samples)}; resume with the same data"
            )
        self.epoch, self.place = state["epoch"], state["place"]
        self._order = self._order_of(self.epoch)


@dataclass(frozen=True)
class ListSource:
    """Samples in memory as a source."""

    name: str
    samples: tuple[Sample, ...]

    def open(self, part: Part, seed: int, *, epochs: int | None = None) -> ListStream:
        """See `Source`."""
        return ListStream(self.samples, part, seed, epochs=epochs)


class MixtureStream:
    """Draws from several streams by weight; a finite stream that ends is drawn no more."""

    def __init__(
        self, streams: Mapping[str, SampleStream], weights: Mapping[str, float], seed: int = 0
    ) -> None:
        if set(streams) != set(weights) or not streams:
            raise ConfigError(
                f"weights are for {sorted(weights)}, streams are {sorted(streams)}; one weight each"
            )
        if any(not weight > 0 or not np.isfinite(weight) for weight in weights.values()):
            raise ConfigError(f"weights are {dict(weights)}; numbers above zero are expected")
        self.streams, self.weights = dict(streams), dict(weights)
        self.living = list(self.streams)
        self.rng = np.random.default_rng([seed, 12])

    def __iter__(self) -> MixtureStream:
        return self

    def __next__(self) -> Sample | BrokenRow:
        while self.living:
            shares = np.array([self.weights[name] for name in self.living])
            name = self.living[int(self.rng.choice(len(shares), p=shares / shares.sum()))]
            try:
                return next(self.streams[name])
            except StopIteration:
                self.living.remove(name)
        raise StopIteration

    def state_dict(self) -> State:
        """The states of all streams, who lives, and the generator."""
        return {
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "living": list(self.living),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says."""
        if set(state.get("streams", ())) != set(self.streams):
            raise DataError(
                f"the state is of a mixture of {sorted(state.get('streams', ()))}, this one has "
                f"{sorted(self.streams)}; resume with the same mixture"
            )
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.living = list(state["living"])
        self.rng.bit_generator.state = state["rng"]


class Guard:
    """Lets samples pass and counts broken rows; too large a share of them ends the run.

    Under way the share must be exceeded beyond chance (three standard deviations of the count), so
    that one broken row among the first hundred ends no run; at a stream's end it counts as it is.
    """

    NUM_DEVIATIONS = 3.0

    def __init__(self, stream: SampleStream, max_broken_share: float = 0.01) -> None:
        if not 0 <= max_broken_share <= 1:
            raise ConfigError(f"max_broken_share is {max_broken_share}, a share in [0, 1] expected")
        self.stream, self.max_broken_share = stream, max_broken_share
        self.num_rows = 0
        self.num_broken = 0
        self.broken_of: dict[str, int] = {}  # where -> count
        self.examples: list[str] = []

    def __iter__(self) -> Guard:
        return self

    def __next__(self) -> Sample:
        while True:
            try:
                item = next(self.stream)
            except StopIteration:
                self._judge(is_end=True)
                raise
            self.num_rows += 1
            if not isinstance(item, BrokenRow):
                return item
            self.report(item)

    def report(self, broken: BrokenRow) -> None:
        """Counts a row that broke here or later on the way; raises DataError beyond the share."""
        self.num_broken += 1
        where = f"{broken.source}: {broken.where}"
        self.broken_of[where] = self.broken_of.get(where, 0) + 1
        if len(self.examples) < 5:
            self.examples.append(f"{where}, row {broken.row}: {broken.reason}")
        self._judge(is_end=False)

    def _judge(self, is_end: bool) -> None:
        certain = is_end or self.max_broken_share == 0
        chance = 0.0 if certain else self.NUM_DEVIATIONS * self.num_broken**0.5
        if self.num_broken - chance > self.max_broken_share * self.num_rows:
            worst = sorted(self.broken_of.items(), key=lambda entry: -entry[1])[:3]
            raise DataError(
                f"{self.num_broken} of {self.num_rows} rows are broken, "
                f"{self.max_broken_share:.1%} are allowed; most in "
                f"{'; '.join(f'{name} ({count})' for name, count in worst)}. "
                f"Examples: {' | '.join(self.examples)}. "
                "Look with `nvila data check`, mend or remove them, or allow a larger share"
            )

    def state_dict(self) -> State:
        """The stream's state and the counts."""
        return {
            "stream": self.stream.state_dict(),
            "counts": [self.num_rows, self.num_broken],
            "broken_of": dict(self.broken_of),
            "examples": list(self.examples),
        }

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says."""
        self.stream.load_state_dict(state["stream"])
        self.num_rows, self.num_broken = state["counts"]
        self.broken_of, self.examples = dict(state["broken_of"]), list(state["examples"])

# SPDX-License-Identifier: Apache-2.0
"""Shards on disk or behind a URL to a stream of samples: shuffled, shared out, resumable.

Each part of a source reads shards of its own where there are enough of them, else every n-th record
of all shards. What is shuffled is kept undecoded; a saved state only names the records in the
buffer, and they are read again.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.training.data.records import Files, samples_of
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.shard_writing import INDEX_NAME, webdataset_module
from nvila_ros.training.data.stream import BrokenRow, Part, State

TIMEOUT_S, NUM_TRIES = 30.0, 3
Place = tuple[
    int, int, int, int
]  # epoch, position in its shard order, record, sample of the record


@dataclass(frozen=True)
class ShardSource:
    """Shards of one data set."""

    name: str
    urls: tuple[str, ...]  # paths, or http(s) addresses
    counts: tuple[int | None, ...] = ()  # records that each must hold; None or absent: not known
    buffer_size: int = 1000  # samples among which the next is drawn

    def open(self, part: Part, seed: int, *, epochs: int | None = None) -> ShardStream:
        """See `Source`."""
        return ShardStream(self, part, seed, epochs=epochs)


def find_shards(path: str, name: str, buffer_size: int = 1000) -> ShardSource:
    """A tar file, a folder of them, or the address of either; an index beside them is used."""
    is_url = path.startswith(("http://", "https://"))
    if path.endswith(".tar"):
        base, names = path.rpartition("/")[0], [path.rpartition("/")[2]]
    elif is_url:
        base, names = path.rstrip("/"), []
    else:
        base, names = path, sorted(file.name for file in Path(path).glob("*.tar"))
    index = _read_index(f"{base}/{INDEX_NAME}" if base else INDEX_NAME)
    if is_url and not names:
        names = sorted(index)
    elif not path.endswith(".tar"):
        names = sorted({*names, *index})  # a shard that the index promises may have been lost
    if not names:
        raise DataError(
            f"{path} holds no shards (*.tar"
            + (f", listed by {INDEX_NAME})" if is_url else "); write some with `nvila data shard`")
        )
    return ShardSource(
        name=name,
        urls=tuple(f"{base}/{shard}" if base else shard for shard in names),
        counts=tuple(index.get(shard) for shard in names),
        buffer_size=buffer_size,
    )


def _read_index(path: str) -> dict[str, int]:
    """Records per shard by the index, empty where there is none."""
    try:
        with open_url(path, num_tries=1) as file:
            content = json.loads(file.read())
        return {shard: int(entry["records"]) for shard, entry in content["shards"].items()}
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is malformed ({error!r}); write the shards again") from None


def open_url(url: str, num_tries: int = NUM_TRIES) -> IO[bytes]:
    """A file or an http(s) address as a stream of bytes; OSError where it cannot be had."""
    if not url.startswith(("http://", "https://")):
        if "://" in url or url.startswith("pipe:"):
            raise ConfigError(f"{url!r}: shards are read from paths, http:// and https:// only")
        return Path(url).open("rb")
    for number in range(num_tries):
        try:
            return cast("IO[bytes]", urllib.request.urlopen(url, timeout=TIMEOUT_S))
        except urllib.error.HTTPError as error:
            if error.code < 500 or number + 1 == num_tries:
                raise
        except OSError:
            if number + 1 == num_tries:
                raise
        time.sleep(2.0**number)
    raise AssertionError("the last try raises")


def records(url: str) -> Iterator[tuple[str, Files]]:
    """(key, files) of each record of one shard, in order; DataError where it is cut or no tar."""
    tar = webdataset_module("webdataset.tariterators")
    try:
        with open_url(url) as file:
            members = ({**member, "__url__": url} for member in tar.tar_file_iterator(file))
            for record in tar.group_by_keys(members):
                yield (
                    record["__key__"],
                    {name: data for name, data in record.items() if name[:2] != "__"},
                )
    except ConfigError:
        raise
    except Exception as error:  # tarfile, the library and the network each raise their own
        reason = str(error.args[0]) if error.args else repr(error)
        raise DataError(f"{url} cannot be read to its end ({reason}); copy it again") from None


class ShardStream:
    """Samples of a part of the shards; see `SampleStream`."""

    def __init__(
        self, source: ShardSource, part: Part, seed: int, *, epochs: int | None = None
    ) -> None:
        if not source.urls:
            raise DataError(f"{source.name} has no shards; give at least one")
        if source.buffer_size < 1:
            raise ConfigError(f"buffer_size is {source.buffer_size}; at least 1 is expected")
        self.source, self.part, self.seed, self.epochs = source, part, seed, epochs
        self.shares_records = len(source.urls) < part.count
        self.rng = np.random.default_rng([seed, 13, part.index])
        self.buffer: list[tuple[Place, Sample]] = []
        self._items = self._read((0, 0, 0, 0))
        self._next_place: Place | None = (0, 0, 0, 0)

    def __iter__(self) -> ShardStream:
        return self

    def __next__(self) -> Sample | BrokenRow:
        while self._next_place is not None and len(self.buffer) < self.source.buffer_size:
            try:
                place, item, self._next_place = next(self._items)
            except StopIteration:
                self._next_place = None
                break
            if isinstance(item, BrokenRow):
                return item
            self.buffer.append((place, item))
        if not self.buffer:
            raise StopIteration
        chosen = int(self.rng.integers(len(self.buffer)))
        self.buffer[chosen], self.buffer[-1] = self.buffer[-1], self.buffer[chosen]
        return self.buffer.pop()[1]

    def _shards(self, epoch: int) -> list[int]:
        """Which shards this part reads in an epoch, in its order."""
        order = np.random.default_rng([self.seed, 13, epoch]).permutation(len(self.source.urls))
        if self.shares_records:
            return order.tolist()
        return order[self.part.index :: self.part.count].tolist()

    def _read(self, start: Place) -> Iterator[tuple[Place, Sample | BrokenRow, Place]]:
        """From a place on: (place, item, the place after it)."""
        epoch, first_shard, first_record, first_sample = start
        while self.epochs is None or epoch < self.epochs:
            shards = self._shards(epoch)
            found = False
            for position in range(first_shard, len(shards)):
                begin = (first_record, first_sample) if position == first_shard else (0, 0)
                for record, number, item in self._shard_items(shards[position], begin):
                    found = True
                    after = (epoch, position, record, number + 1)
                    yield (epoch, position, record, number), item, after
            if not found and (first_shard, first_record, first_sample) == (0, 0, 0):
                raise DataError(
                    f"part {self.part.index} of {self.part.count} found no sample in the "
                    f"{len(shards)} shards of {self.source.name}; use fewer workers or more shards"
                )
            epoch, first_shard, first_record, first_sample = epoch + 1, 0, 0, 0

    def _shard_items(
        self, shard: int, begin: tuple[int, int]
    ) -> Iterator[tuple[int, int, Sample | BrokenRow]]:
        """(record, sample of the record, item) of one shard, from (record, sample) `begin` on."""
        url, name = self.source.urls[shard], self.source.name
        expected = self.source.counts[shard] if shard < len(self.source.counts) else None
        count = 0
        reason = "the shard ends early; copy it again"
        try:
            for record, (key, files) in enumerate(records(url)):
                count = record + 1
                if record < begin[0] or not self._is_mine(shard, record):
                    continue
                try:
                    samples: Sequence[Sample | BrokenRow] = samples_of(files, key, url, name)
                except DataError as error:
                    samples = [BrokenRow(name, url, key, str(error))]
                for number, item in enumerate(samples):
                    if (record, number) >= begin:
                        yield record, number, item
        except DataError as error:
            reason = str(error)
            expected = max(expected or 0, count + 1)
        for record in range(count, expected or 0):
            if (record, 0) >= begin and self._is_mine(shard, record):
                yield record, 0, BrokenRow(name, url, f"record {record}", reason)

    def one_shard(self, shard: int) -> Iterator[Sample | BrokenRow]:
        """Everything of one shard in its order, whatever this part's share is."""
        return (item for _, _, item in self._shard_items(shard, (0, 0)))

    def _is_mine(self, shard: int, record: int) -> bool:
        if not self.shares_records:
            return True
        offset = shard * (self.part.count // len(self.source.urls) + 1)
        return (record + offset) % self.part.count == self.part.index

    def state_dict(self) -> State:
        """Where reading goes on, and which records the buffer holds."""
        return {
            "next": self._next_place,
            "buffer": [list(place) for place, _ in self.buffer],
            "rng": self.rng.bit_generator.state,
            "part": [self.part.index, self.part.count],
            "num_shards": len(self.source.urls),
        }

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says; the buffer's records are read again."""
        mine = [[self.part.index, self.part.count], len(self.source.urls)]
        if [list(state["part"]), state["num_shards"]] != mine:
            raise DataError(
                f"the state of {self.source.name} is of part {state['part']} of "
                f"{state['num_shards']} shards, this stream is part {mine[0]} of {mine[1]}; resume "
                "with the same data, ranks and workers"
            )
        self.rng.bit_generator.state = state["rng"]
        self._next_place = None if state["next"] is None else cast(Place, tuple(state["next"]))
        self._items = iter(()) if self._next_place is None else self._read(self._next_place)
        self.buffer = self._read_again([cast(Place, tuple(place)) for place in state["buffer"]])

    def _read_again(self, places: list[Place]) -> list[tuple[Place, Sample]]:
        found: dict[Place, Sample] = {}
        for epoch, position in sorted({place[:2] for place in places}):
            wanted = {place for place in places if place[:2] == (epoch, position)}
            shard = self._shards(epoch)[position]
            for record, number, item in self._shard_items(shard, (min(p[2] for p in wanted), 0)):
                place: Place = (epoch, position, record, number)
                if place in wanted and isinstance(item, Sample):
                    found[place] = item
                    wanted.discard(place)
                if not wanted:
                    break
        missing: Any = [place for place in places if place not in found]
        if missing:
            raise DataError(
                f"{len(missing)} samples of {self.source.name} that were read before are gone, for "
                f"instance record {missing[0][2]}; resume with the same shards"
            )
        return [(place, found[place]) for place in places]

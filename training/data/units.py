# SPDX-License-Identifier: Apache-2.0
"""A data set cut into units of work: ranges of a file's rows, or whole shards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from nvila_ros.errors import ConfigError
from nvila_ros.training.data.rows import Rows, RowsSource
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.shards import ShardSource
from nvila_ros.training.data.stream import BrokenRow, Part, Source
from nvila_ros.training.scale import Unit


def source_units(source: Source, rows_per_unit: int, prefix: str = "") -> list[Unit]:
    """Units that together hold every row once."""
    name = prefix or source.name
    if isinstance(source, ShardSource):
        return [Unit(f"{name}-{shard:06d}", shard) for shard in range(len(source.urls))]
    if isinstance(source, RowsSource):
        count = len(_rows(source))
        starts = range(0, count, rows_per_unit)
        return [
            Unit(f"{name}-{number:06d}", (start, min(start + rows_per_unit, count)))
            for number, start in enumerate(starts)
        ]
    raise ConfigError(
        f"{source.name} has no end; write shards of it first (`nvila data generate` or `shard`)"
    )


def unit_rows(source: Source, unit: Unit) -> Iterator[Sample | BrokenRow]:
    """The rows of one unit, in their order."""
    if isinstance(source, ShardSource):
        yield from source.open(Part(), 0, epochs=1).one_shard(unit.content)
    elif isinstance(source, RowsSource):
        rows = _rows(source)
        yield from (rows[index] for index in range(*unit.content))
    else:
        raise ConfigError(f"{source.name} has no units")


@lru_cache(maxsize=8)
def _rows(source: RowsSource) -> Rows:
    """A file is read once per process, not once per unit."""
    return source.rows()

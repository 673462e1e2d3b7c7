# SPDX-License-Identifier: Apache-2.0
"""Samples to WebDataset shards: tar files of bounded size and an index of what each must hold."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from nvila_ros.errors import DataError, install_hint
from nvila_ros.training.data.records import Files, record_of
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.stream import BrokenRow

INDEX_NAME = "index.json"
MAX_RECORD_SAMPLES = 256  # of one group: a reader holds a record in memory


def webdataset_module(name: str) -> Any:
    """A module of the library webdataset; DataError names the extra that brings it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"shards need the library webdataset ({error}); {install_hint('train')}"
        ) from None


@dataclass
class WrittenShards:
    """What was written."""

    shards: dict[str, dict[str, int]] = field(default_factory=dict)  # name -> records, samples
    broken: list[BrokenRow] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """Over all shards."""
        return sum(shard["samples"] for shard in self.shards.values())


def write_shards(
    samples: Iterable[Sample | BrokenRow],
    folder: Path | str,
    *,
    prefix: str = "shard",
    max_samples: int = 1000,
    max_bytes: int = 256 * 2**20,
    quality: int = 92,
    clip_frames: int = 32,
    writes_index: bool = True,
) -> WrittenShards:
    """Writes `<prefix>-000000.tar`, ... and `index.json`; each file appears when it is whole.

    Consecutive samples of one group share a record. Rows whose pictures cannot be read are left out
    and listed. A full disk raises DataError and leaves whole shards only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = WrittenShards()
    shard = _Shard(folder, prefix, written)
    try:
        for group in _groups(samples, written.broken):
            whole = _whole_record(group, written.broken, quality, clip_frames)
            if whole is None:
                continue
            shard.add(*whole)
            if shard.num_samples >= max_samples or shard.num_bytes >= max_bytes:
                shard.close()
        shard.close()
    except OSError as error:
        shard.abandon()
        raise DataError(
            f"shards in {folder} cannot be written ({error.strerror}); {len(written.shards)} whole "
            "ones are there; make room and write again"
        ) from None
    except BaseException:
        shard.abandon()
        raise
    if writes_index:
        write_index(folder, written.shards)
    return written


def write_index(folder: Path, shards: dict[str, dict[str, int]]) -> None:
    """What each shard must hold, so that one that was cut short is noticed."""
    temporary = folder / f".{INDEX_NAME}.tmp"
    temporary.write_text(json.dumps({"format": 1, "shards": shards}, indent=1) + "\n")
    temporary.replace(folder / INDEX_NAME)


def _groups(
    samples: Iterable[Sample | BrokenRow], broken: list[BrokenRow]
) -> Iterator[list[Sample]]:
    """Runs of samples of one group; a sample without a group stands alone."""

    def good() -> Iterator[Sample]:
        for item in samples:
            if isinstance(item, BrokenRow):
                broken.append(item)
            else:
                yield item

    def group_key(entry: tuple[int, Sample]) -> tuple[str, str]:
        number, sample = entry
        return sample.source, f"#{number}" if sample.group is None else sample.group

    for _, run in groupby(enumerate(good()), group_key):
        members: list[Sample] = []
        for _, sample in run:
            members.append(sample)
            if len(members) == MAX_RECORD_SAMPLES:
                yield members
                members = []
        if members:
            yield members


def _whole_record(
    group: list[Sample], broken: list[BrokenRow], quality: int, clip_frames: int
) -> tuple[Files, int] | None:
    """The group's record and how many samples it holds, less those that cannot be read."""
    try:
        return record_of(group, quality=quality, clip_frames=clip_frames), len(group)
    except DataError as error:
        if len(group) == 1:
            broken.append(BrokenRow(group[0].source, "rows", group[0].key, str(error)))
            return None
    readable = [s for s in group if _whole_record([s], broken, quality, clip_frames)]
    return _whole_record(readable, broken, quality, clip_frames) if readable else None


class _Shard:
    """The shard being written, under a name that no reader looks for."""

    def __init__(self, folder: Path, prefix: str, written: WrittenShards) -> None:
        self.folder, self.prefix, self.written = folder, prefix, written
        self.temporary = folder / f".{prefix}.tmp"
        self.file: IO[bytes] | None = None
        self.writer: Any = None
        self.num_records = self.num_samples = self.num_bytes = 0

    def add(self, files: dict[str, bytes], num_samples: int) -> None:
        if self.file is None:
            self.file = self.temporary.open("wb")
            library = webdataset_module("webdataset")
            self.writer = library.TarWriter(self.file, encoder=False, mtime=0.0)
        key = f"{self.num_records:06d}"
        self.writer.write({"__key__": key, **files})
        self.num_records += 1
        self.num_samples += num_samples
        self.num_bytes += sum(len(content) for content in files.values())

    def close(self) -> None:
        if self.file is None:
            return
        self.writer.close()
        self.file.close()
        name = f"{self.prefix}-{len(self.written.shards):06d}.tar"
        self.temporary.replace(self.folder / name)
        self.written.shards[name] = {"records": self.num_records, "samples": self.num_samples}
        self.file = None
        self.num_records = self.num_samples = self.num_bytes = 0

    def abandon(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.writer.close()
            with contextlib.suppress(OSError):
                self.file.close()
        self.temporary.unlink(missing_ok=True)

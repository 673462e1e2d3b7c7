# SPDX-License-Identifier: Apache-2.0
"""One part of a checkpoint, checked against the network by its headers, then read in one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.models.headers import StoredTensor, read_headers
from nvila_ros.models.mapping import CHUNK_BYTES, MappedFile, ReadAhead
from nvila_ros.models.memory import empty_on
from nvila_ros.models.quantization import PackedReader
from nvila_ros.models.quantization_int8 import Int8Reader

FLOATS = ("F16", "BF16", "F32", "F64")

# Entries of released files that have no place in the network: buffers, and heads that are not used.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".embeddings.position_ids")
IGNORED_PREFIXES = ("vision_model.head.", "head.")
TOWER_PREFIX = "vision_model."
PACKED_MARKS = (".qweight", ".weight_packed")


class Source(Protocol):
    """A file with tensors."""

    path: Path
    tensors: dict[str, StoredTensor]

    def view(self, name: str) -> Tensor:
        """One tensor in its stored dtype, not copied where that can be."""

    def release(self, begin: int, end: int) -> None:
        """These bytes of the file are not needed any more."""

    def close(self) -> None:
        """Nothing of the file is needed for now."""


@dataclass(frozen=True)
class Entry:
    """One tensor that the network wants and a file has."""

    key: str  # in the network
    name: str  # in the file; transformers 5 leaves the tower's prefix out
    source: Source

    @property
    def stored(self) -> StoredTensor:
        """What the file's header says of it."""
        return self.source.tensors[self.name]

    @property
    def begin(self) -> int:
        """Of its bytes in the file."""
        return self.stored.begin

    @property
    def end(self) -> int:
        """After its last byte."""
        return self.begin + self.stored.num_bytes


Place = Callable[[Tensor, torch.dtype, Callable[[int], None]], Tensor]


class PartReader:
    """The files of one part, whose every name, shape and dtype fits the network `module`.

    A CheckpointError comes from the constructor, before a weight is read. `stream` may be used
    once; of quantized linears it gives what the module keeps, each linear as soon as it is whole.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        packed: PackedReader | Int8Reader,
        sources: Sequence[Source] | None = None,
    ) -> None:
        self.folder = folder
        self.packed = packed
        own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        self._shapes = {key: own[key] for key in own if key not in self.packed.replaced}
        self._shapes |= self.packed.shapes
        if sources is None:
            sources = [MappedFile(path) for path in read_headers(folder)]
        self.entries = self._in_order(self._matched(sources))

    def _matched(self, sources: Sequence[Source]) -> list[Entry]:
        """Every tensor that the network wants, or a CheckpointError for the first that is wrong."""
        is_tied = "model.embed_tokens.weight" in self._shapes
        is_tied = is_tied and "lm_head.weight" not in self._shapes
        entries, unexpected = [], []
        for source in sources:
            for name in source.tensors:
                key = name if TOWER_PREFIX + name not in self._shapes else TOWER_PREFIX + name
                if key in self._shapes:
                    entries.append(Entry(key, name, source))
                    self._check(entries[-1])
                elif not (_is_ignored(name) or (is_tied and name == "lm_head.weight")):
                    unexpected.append((name, source.path))
        missing = sorted(self._shapes.keys() - {entry.key for entry in entries})
        if missing or unexpected:
            raise CheckpointError(self._misfit(missing, unexpected))
        return entries

    def _check(self, entry: Entry) -> None:
        stored, expected = entry.stored, self._shapes[entry.key]
        if stored.shape != expected:
            raise CheckpointError(
                f"{entry.source.path}: {entry.key} has shape {stored.shape}, config.json asks for "
                f"{expected}; the weights and the config are not of one checkpoint: download both"
            )
        if entry.key not in self.packed.shapes and stored.dtype not in FLOATS:
            raise CheckpointError(
                f"{entry.source.path}: {entry.key} is stored as {stored.dtype}, one of "
                f"{', '.join(FLOATS)} is expected; if the weights are quantized, config.json has "
                "to say how (quantization_config), else download the file again"
            )

    def _misfit(self, missing: list[str], unexpected: list[tuple[str, Path]]) -> str:
        names = [name for name, _ in unexpected]
        where = f"(in {unexpected[0][1].name}) " if unexpected else ""
        advice = "download the folder again, or load it with its own config"
        if any(name.endswith(PACKED_MARKS) for name in names) and not self.packed.shapes:
            advice = (
                "the files hold int4 weights and config.json has no quantization_config: take "
                "config.json from where the weights came from"
            )
        return (
            f"{self.folder} does not fit its config.json: {_summary('missing', missing)}"
            f"{_summary('not expected', names)}{where}{advice}"
        )

    def _in_order(self, entries: list[Entry]) -> list[Entry]:
        """As they lie in the files, but all tensors of a quantized linear with its first one.

        Writers sort by dtype: otherwise all codes of a file would wait for scales at its end.
        """
        members: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.key in self.packed.shapes:
                members.setdefault(entry.key.rpartition(".")[0], []).append(entry)
        files = {id(entry.source): index for index, entry in reversed([*enumerate(entries)])}
        ordered: list[Entry] = []
        for entry in sorted(entries, key=lambda each: (files[id(each.source)], each.stored.begin)):
            if entry.key in self.packed.shapes:
                ordered += members.pop(entry.key.rpartition(".")[0], ())
            else:
                ordered.append(entry)
        return ordered

    def stream(
        self, dtype: torch.dtype | None, device: torch.device
    ) -> Iterator[tuple[str, Tensor]]:
        """The network's (key, tensor) on `device`, floats as `dtype` (None: as stored).

        On a CPU a tensor that needs no other dtype is a view of its file. Nothing else is kept:
        what one step gave may be dropped before the next.
        """
        waiting: list[Entry] = []  # of a quantized linear, until it is whole
        for entry, tensor in self.placed(dtype, Placement(device)):
            waiting.append(entry)
            if entry.key in self.packed.shapes:
                state = self.packed.add(entry.source.path, entry.key, tensor)
                if not state:
                    continue
                yield from state.items()
                state.clear()
            else:
                yield entry.key, tensor
            del tensor
            for done in waiting:
                done.source.release(done.begin, done.end)
            waiting.clear()

    def placed(self, dtype: torch.dtype | None, place: Place) -> Iterator[tuple[Entry, Tensor]]:
        """What each entry's `place` gives; quantized linears as they are stored."""
        ranges = [
            (entry.source.path, entry.begin, entry.end)
            for entry in self.entries
            if isinstance(entry.source, MappedFile)
        ]
        source = None
        with ReadAhead(ranges) as ahead:
            for entry in self.entries:
                if source is not None and source is not entry.source:
                    source.close()
                source = entry.source
                view = source.view(entry.name)
                wanted = view.dtype
                if dtype is not None and entry.key not in self.packed.shapes:
                    wanted = dtype
                yield entry, place(view, wanted, _progress(entry, ahead))
                del view


@dataclass(frozen=True)
class Placement:
    """Puts mapped tensors on a device in a dtype, a chunk at a time, converted on the device."""

    device: torch.device

    def __call__(self, view: Tensor, dtype: torch.dtype, used: Callable[[int], None]) -> Tensor:
        """The view itself where it is already what is wanted, else a new tensor."""
        if self.device.type == "cpu" and view.dtype == dtype:
            used(view.nbytes)
            return view
        target = empty_on(self.device, view.shape, dtype)
        source, flat = view.reshape(-1), target.view(-1)
        step = CHUNK_BYTES // view.itemsize
        for begin in range(0, source.numel(), step):
            piece = source[begin : begin + step]
            flat[begin : begin + step].copy_(piece.to(self.device))
            used(piece.nbytes)
        return target


def _progress(entry: Entry, ahead: ReadAhead) -> Callable[[int], None]:
    """To be called with how many more bytes of a tensor were copied out of its file."""
    position = entry.begin

    def used(num_bytes: int) -> None:
        nonlocal position
        entry.source.release(position, position + num_bytes)
        position += num_bytes
        ahead.used(num_bytes)

    return used


def _is_ignored(key: str) -> bool:
    return key.endswith(IGNORED_SUFFIXES) or key.startswith(IGNORED_PREFIXES)


def _summary(title: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{title}: {', '.join(keys[:3])}{more}; "

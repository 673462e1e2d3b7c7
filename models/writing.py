# SPDX-License-Identifier: Apache-2.0
"""Safetensors written tensor by tensor in any order, in shards; complete or not there at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nvila_ros.errors import CheckpointError
from nvila_ros.models.headers import DTYPE_NAMES, LENGTH_BYTES
from nvila_ros.models.mapping import CHUNK_BYTES
from nvila_ros.models.part_files import INDEX_FILE, SINGLE_FILE

SHARD_BYTES = 5_000_000_000  # as released folders
Specification = tuple[torch.dtype, tuple[int, ...]]


def num_bytes_of(specification: Specification) -> int:
    """What a tensor of this dtype and shape takes on the disk."""
    dtype, shape = specification
    return dtype.itemsize * math.prod(shape)


class PartWriter:
    """Writes one part: `write` each tensor once, then `finish`; leaving early removes all.

    The disk space is taken at the start, so that a full disk is noticed before the work.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, Specification], shard_bytes: int = SHARD_BYTES
    ) -> None:
        self._folder = folder
        self._tensors = dict(tensors)
        shards = _split(self._tensors, shard_bytes)
        count = len(shards)
        self._names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        if count == 1:
            self._names = [SINGLE_FILE]
        self._weight_map = {
            key: name for name, keys in zip(self._names, shards, strict=True) for key in keys
        }
        self._begins: dict[str, int] = {}
        self._left = set(self._tensors)
        self._files: dict[str, int] = {}
        try:
            for name, keys in zip(self._names, shards, strict=True):
                self._files[name] = self._open(name, keys)
        except BaseException:
            self._abandon()
            raise

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._abandon()

    def write(self, key: str, tensor: Tensor) -> None:
        """One tensor, in the dtype that was announced, a chunk at a time."""
        dtype, shape = self._tensors[key]
        assert tuple(tensor.shape) == shape, f"{key}: {tuple(tensor.shape)}, announced {shape}"
        self._left.remove(key)
        name = self._weight_map[key]
        flat, position = tensor.detach().reshape(-1), self._begins[key]
        step = CHUNK_BYTES // dtype.itemsize
        for begin in range(0, flat.numel(), step):
            piece = flat[begin : begin + step].to("cpu", dtype).contiguous()
            content = piece.view(torch.uint8).numpy().data
            try:
                while content:
                    written = os.pwrite(self._files[name], content, position)
                    content, position = content[written:], position + written
            except OSError as error:
                raise self._failure(name, error) from None

    def finish(self) -> None:
        """Give the files their names; what an earlier save left of this part goes."""
        assert not self._left, f"not written: {sorted(self._left)[:3]}"
        for name, descriptor in self._files.items():
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise self._failure(name, error) from None
        for name in self._names:
            self._unfinished(name).replace(self._folder / name)  # a reader never meets half a file
        index = self._folder / INDEX_FILE
        if len(self._names) > 1:
            total = sum(num_bytes_of(each) for each in self._tensors.values())
            content = {"metadata": {"total_size": total}, "weight_map": self._weight_map}
            index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        else:
            index.unlink(missing_ok=True)
        for path in self._folder.glob("*.safetensors"):
            if path.name not in self._names:
                path.unlink()

    def _open(self, name: str, keys: list[str]) -> int:
        """A new file with its header and room for its tensors; larger numbers come first."""
        offset, header = 0, {"__metadata__": {"format": "pt"}}
        for key in sorted(keys, key=lambda each: -self._tensors[each][0].itemsize):
            (dtype, shape), begin = self._tensors[key], offset
            offset += num_bytes_of(self._tensors[key])
            entry = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [begin, offset]}
            header[key] = entry  # type: ignore[assignment]
            self._begins[key] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # numbers of eight bytes lie at multiples of eight
        start = LENGTH_BYTES + len(text)
        for key in keys:
            self._begins[key] += start
        try:
            path = self._unfinished(name)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self._files[name] = descriptor
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, start + offset)
            os.pwrite(descriptor, len(text).to_bytes(LENGTH_BYTES, "little") + text, 0)
        except OSError as error:
            raise self._failure(name, error) from None
        return descriptor

    def _failure(self, name: str, error: OSError) -> CheckpointError:
        total = sum(num_bytes_of(each) for each in self._tensors.values())
        free = shutil.disk_usage(self._folder).free
        return CheckpointError(
            f"{self._folder / name} cannot be written ({error.strerror}); its folder needs "
            f"{total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on that disk: make room or choose "
            "another disk"
        )

    def _unfinished(self, name: str) -> Path:
        return self._folder / f"{name}.unfinished"

    def _abandon(self) -> None:
        """Close; what was not finished goes."""
        for name, descriptor in self._files.items():
            os.close(descriptor)
            self._unfinished(name).unlink(missing_ok=True)
        self._files.clear()


def _split(tensors: Mapping[str, Specification], shard_bytes: int) -> list[list[str]]:
    """Keys in order, cut where a shard would pass its size."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, specification in tensors.items():
        num_bytes = num_bytes_of(specification)
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += num_bytes
    return shards

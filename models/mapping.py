# SPDX-License-Identifier: Apache-2.0
"""Memory-mapped safetensors: views of a file's tensors, read ahead of use and let go after it."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nvila_ros.models.headers import DTYPES, read_header

CHUNK_BYTES = 8 << 20  # converted and read ahead at a time
AHEAD_BYTES = 128 << 20  # the disk works this far ahead of the processor
MAP_NORESERVE = 0x4000  # of Linux; Python 3.10's mmap does not name it


class MappedFile:
    """One safetensors file; its tensors are views of the page cache, in no process's memory.

    What is written into a view stays private to this process, the file never changes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        with path.open("rb") as file:
            if sys.platform == "linux":  # without reserving memory for pages that nobody writes
                flags, access = mmap.MAP_PRIVATE | MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                self._map = mmap.mmap(file.fileno(), 0, flags, access)
            else:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def view(self, name: str) -> Tensor:
        """A tensor in its stored dtype; the mapping lives as long as a view of it."""
        stored = self.tensors[name]
        dtype = DTYPES[stored.dtype]
        if not stored.num_bytes:
            return torch.empty(stored.shape, dtype=dtype)
        count = stored.num_bytes
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=stored.begin)
        if stored.begin % dtype.itemsize:
            flat = flat.clone()  # no writer that is known leaves a tensor at such a place
        return flat.view(dtype).view(stored.shape)

    def release(self, begin: int, end: int) -> None:
        """Take the pages wholly inside these bytes out of the process; the page cache keeps them.

        Only for bytes of which no view is kept that somebody may have written to.
        """
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """A mapping costs no memory and is kept."""


class ReadAhead:
    """A thread that asks the disk for (file, begin, end) ranges, in order, a bit ahead of use."""

    def __init__(self, ranges: Sequence[tuple[Path, int, int]]) -> None:
        self._ranges = ranges
        self._budget = AHEAD_BYTES
        self._changed = threading.Condition()
        self._stopped = not hasattr(os, "posix_fadvise")
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def used(self, num_bytes: int) -> None:
        """The next bytes were taken: as many more may be asked for."""
        with self._changed:
            self._budget += num_bytes
            self._changed.notify()

    def _run(self) -> None:
        files: dict[Path, int] = {}
        try:
            for path, first, end in self._ranges:
                if path not in files:
                    files[path] = os.open(path, os.O_RDONLY)
                for begin in range(first, end, CHUNK_BYTES):
                    length = min(CHUNK_BYTES, end - begin)
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped or self._budget > 0)
                        if self._stopped:
                            return
                        self._budget -= length
                    os.posix_fadvise(files[path], begin, length, os.POSIX_FADV_WILLNEED)
        except OSError:
            return  # only slower: whoever reads the file says what is wrong with it
        finally:
            for descriptor in files.values():
                os.close(descriptor)

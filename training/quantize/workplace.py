# SPDX-License-Identifier: Apache-2.0
"""The folder beside the target that holds an unfinished run: whatever is in it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvila_ros.errors import ConfigError

PLAN_FILE = "plan.json"


class Workplace:
    """Files appear under their name when they are complete, so a killed run goes on from them."""

    def __init__(self, target: Path, plan: dict[str, Any]) -> None:
        self.folder = target.parent / f".{target.name}.quantizing"
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob("*.unfinished"):
            unfinished.unlink()
        plan = json.loads(json.dumps(plan))  # as it will be read back
        if not (self.folder / PLAN_FILE).exists():
            self.write_json(PLAN_FILE, plan)
        found = self.read_json(PLAN_FILE)
        differing = sorted(
            key for key in {*plan, *found} if plan.get(key, None) != found.get(key, None)
        )
        if differing:
            raise ConfigError(
                f"{self.folder} holds an unfinished run that differs in {', '.join(differing)}; "
                "run it again with its own settings, or delete that folder"
            )

    def has(self, name: str) -> bool:
        """Whether a file is there, and so complete."""
        return (self.folder / name).exists()

    def write_json(self, name: str, data: Any) -> None:
        """Write an object."""
        unfinished = self.folder / f"{name}.unfinished"
        unfinished.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        self._finish(unfinished, name)

    def read_json(self, name: str) -> Any:
        """Read an object."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write a safetensors file."""
        unfinished = self.folder / f"{name}.unfinished"
        save_file(tensors, unfinished, metadata={"format": "pt"})
        self._finish(unfinished, name)

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file."""
        return load_file(self.folder / name)

    def new_array(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        """A float32 array on the disk; `finish_array` gives it its name."""
        unfinished = self.folder / f"{name}.unfinished"
        reserve(unfinished, 4 * int(np.prod(shape, dtype=np.int64)) + 128)
        return np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)

    def finish_array(self, name: str, array: np.memmap) -> None:
        """Everything is written."""
        array.flush()
        self._finish(self.folder / f"{name}.unfinished", name)

    def array(self, name: str) -> np.ndarray:
        """Look at an array without reading it; private, so that torch may take views of it."""
        return np.load(self.folder / name, mmap_mode="c")

    def drop(self, name: str) -> None:
        """Delete what is no longer needed."""
        (self.folder / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def _finish(self, unfinished: Path, name: str) -> None:
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(self.folder / name)


def reserve(path: Path, num_bytes: int) -> None:
    """Take the space now: a full disk is an error here, and a crash when mapped pages meet it."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, num_bytes))


def digest(folder: Path) -> str:
    """Of a checkpoint: its JSON texts, and names, sizes and dates of its weights."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        total.update(str(path.relative_to(folder)).encode())
        status = path.stat()
        small = path.suffix == ".json"
        total.update(
            path.read_bytes() if small else f"{status.st_size} {status.st_mtime_ns}".encode()
        )
    return total.hexdigest()

# SPDX-License-Identifier: Apache-2.0
"""Older checkpoints' pickles, read without running any code that they hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvila_ros.errors import CheckpointError
from nvila_ros.models.headers import DTYPE_NAMES, StoredTensor
from nvila_ros.models.part_files import PICKLE_INDEX_FILE, indexed_files, pickle_files


def has_only_pickles(folder: Path) -> bool:
    """Whether a part's weights are pickles and nothing else."""
    return not any(folder.glob("*.safetensors")) and bool(pickle_files(folder))


def open_pickles(folder: Path) -> list[PickleFile]:
    """All files of a part, no tensor in two of them, none missing that the index promises."""
    files = [PickleFile(path) for path in pickle_files(folder)]
    owners: dict[str, Path] = {}
    for file in files:
        twice = sorted(file.tensors.keys() & owners.keys())
        if twice:
            raise CheckpointError(
                f"{file.path} holds {twice[0]}, which {owners[twice[0]].name} beside it holds too; "
                "leave one checkpoint's weights in the folder"
            )
        owners |= dict.fromkeys(file.tensors, file.path)
    if (folder / PICKLE_INDEX_FILE).exists():
        for path, promised in indexed_files(folder, PICKLE_INDEX_FILE).items():
            absent = sorted(name for name in promised if owners.get(name) != path)
            if absent:
                raise CheckpointError(
                    f"{path} has no {absent[0]}, which the index beside it promises; "
                    "download this file and the index again"
                )
    return files


class PickleFile:
    """One pickle's tensors; memory-mapped, or where an old form forbids it, read when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: Mapping[str, Tensor] | None = None
        self.tensors = {
            name: StoredTensor(
                DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)),
                tuple(tensor.shape),
                index,  # a pickle's tensors are read in its own order
                tensor.numel() * tensor.itemsize,
            )
            for index, (name, tensor) in enumerate(read_pickle(path).items())
        }

    def view(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        if self._content is None:
            self._content = read_pickle(self.path)
        return self._content[name]

    def release(self, begin: int, end: int) -> None:
        """Nothing to give back before the file is closed."""

    def close(self) -> None:
        """Forget the content; `view` reads it again."""
        self._content = None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Name -> tensor; anything but tensors is refused."""
    try:
        content = _load(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download the shard") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} holds more than weights or is broken, and is not opened ({reason}); "
            "get the checkpoint as safetensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no dictionary of tensors; it is no model's weights")
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path}: {strange[0]} is no tensor; it is no model's weights")
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _load(path: Path) -> Any:
    """Mapped where the file is of the kind that PyTorch has written since 2020."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)

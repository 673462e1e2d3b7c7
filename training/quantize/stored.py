# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's part on disk, read a few tensors at a time: an 8B never lies in memory whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.models.part_files import tensor_files
from nvila_ros.models.reading import TOWER_PREFIX


class StoredPart:
    """`vision_tower/`, `mm_projector/` or `llm/`: which file holds which tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place: dict[str, tuple[Path, str]] = {}
        for path in tensor_files(folder):
            try:
                with safe_open(path, framework="pt") as file:
                    for stored in file.keys():  # noqa: SIM118 - the file is no mapping
                        self._place[_released_name(folder, stored)] = (path, stored)
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path} is truncated or corrupt ({error}); copy it again"
                ) from None

    @property
    def names(self) -> list[str]:
        """Every tensor, in alphabetical order."""
        return sorted(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, from its file's header."""
        path, stored = self._place[name]
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(stored).get_shape())

    def read(self, names: Iterable[str], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Some tensors in `dtype`, those of one file read together."""
        found: dict[str, Tensor] = {}
        for name in names:
            if name not in self._place:
                raise CheckpointError(f"{self.folder} has no {name}; copy the folder again")
            path, stored = self._place[name]
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(stored)
            found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return found

    def fill(self, module: nn.Module, prefix: str, device: torch.device) -> None:
        """Give a module on the meta device its float32 weights."""
        state = self.read([f"{prefix}{name}" for name in module.state_dict()])
        for name, wanted in module.state_dict().items():
            found = state[f"{prefix}{name}"]
            if found.shape != wanted.shape:
                raise CheckpointError(
                    f"{self.folder}: {prefix}{name} has shape {tuple(found.shape)}, config.json "
                    f"asks for {tuple(wanted.shape)}"
                )
        module.load_state_dict(
            {name: state[f"{prefix}{name}"].to(device) for name in module.state_dict()},
            assign=True,
        )
        module.eval().requires_grad_(False)


def _released_name(folder: Path, stored: str) -> str:
    """Transformers 5 writes a tower without the prefix that released files have."""
    bare = ("embeddings.", "encoder.", "post_layernorm.", "head.")
    if folder.name == "vision_tower" and stored.startswith(bare):
        return TOWER_PREFIX + stored
    return stored


def to_half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float tensors as checkpoints for the engine hold them; CheckpointError where that is inf."""
    halved = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            half = tensor.half()
            if not bool(half.isfinite().all()):
                raise CheckpointError(f"{name} does not fit float16; its largest magnitude is too")
            tensor = half
        halved[name] = tensor.cpu().contiguous()
    return halved

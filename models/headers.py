# SPDX-License-Identifier: Apache-2.0
"""What tensors a checkpoint's files hold, from their headers alone: weights stay on the disk."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_ros.errors import CheckpointError
from nvila_ros.models.config_files import read_json

INDEX_FILE = "model.safetensors.index.json"
LENGTH_BYTES = 8  # little-endian length of the JSON header that follows
MAX_HEADER_BYTES = 100_000_000

# Tensors of quantized linears: the packed weights count, what only scales them does not.
PACKED_SUFFIXES = (".qweight", ".weight_packed")
SCALING_SUFFIXES = (
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
)
PACKED_BITS = 4


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on the disk."""

    dtype: str  # as safetensors names it: F16, BF16, F32, I32, ...
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Numbers that the tensor holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StoredPart:
    """One of the three folders."""

    num_tensors: int
    num_parameters: int  # packed weights are counted one by one, their scales are not
    num_bytes: int
    dtypes: dict[str, int]  # tensors per dtype, the most frequent first


def read_part(folder: Path) -> StoredPart:
    """Add up the headers of one part's safetensors files."""
    tensors = read_headers(folder)
    dtypes = Counter(tensor.dtype for tensor in tensors.values())
    return StoredPart(
        num_tensors=len(tensors),
        num_parameters=sum(_num_parameters(name, tensor) for name, tensor in tensors.items()),
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        dtypes=dict(dtypes.most_common()),
    )


def _num_parameters(name: str, tensor: StoredTensor) -> int:
    if name.endswith(SCALING_SUFFIXES):
        return 0
    if name.endswith(PACKED_SUFFIXES):
        return tensor.num_bytes * 8 // PACKED_BITS
    return tensor.num_elements


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Name -> tensor over all safetensors files of a folder, or those that its index lists."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; point at a folder in the released layout")
    index = folder / INDEX_FILE
    single = folder / "model.safetensors"
    if single.exists() or not index.exists():
        paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    else:
        paths = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if not paths:
        raise CheckpointError(
            f"{folder} has no safetensors files; download the weights, or turn pickles into "
            "safetensors with: nvila convert SOURCE TARGET"
        )
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        tensors |= read_header(path)
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one file, whose length is held to what its header promises."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 0 < header_bytes <= min(MAX_HEADER_BYTES, path.stat().st_size):
                raise ValueError(f"a header of {header_bytes} bytes")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        tensors = {name: _entry(entry) for name, entry in header.items()}
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download the shard") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); copy it again") from None
    expected = LENGTH_BYTES + header_bytes + max(ends, default=0)
    if path.stat().st_size != expected:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, its header promises {expected}; copy it again"
        )
    return tensors


def _entry(entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), int(end) - int(begin))

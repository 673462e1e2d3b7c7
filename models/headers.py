# SPDX-License-Identifier: Apache-2.0
"""What tensors a checkpoint's files hold, from their headers alone: weights stay on the disk."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nvila_ros.errors import CheckpointError
from nvila_ros.models.part_files import tensor_files

LENGTH_BYTES = 8  # little-endian length of the JSON header that follows
MAX_HEADER_BYTES = 100_000_000
POINTER_START = b"version https://git-lfs"  # what git leaves where git-lfs is not installed

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

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
HALF_BYTES = 2


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on the disk."""

    dtype: str  # as safetensors names it: F16, BF16, F32, I32, ...
    shape: tuple[int, ...]
    begin: int  # of its bytes, counted from the start of the file
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
    num_files: int
    dtypes: dict[str, int]  # tensors per dtype, the most frequent first
    num_half_bytes: int  # with every float that scales nothing in 16 bits


def read_part(folder: Path) -> StoredPart:
    """Add up the headers of one part's safetensors files."""
    files = read_headers(folder)
    tensors = {name: tensor for header in files.values() for name, tensor in header.items()}
    dtypes = Counter(tensor.dtype for tensor in tensors.values())
    return StoredPart(
        num_tensors=len(tensors),
        num_parameters=sum(_num_parameters(name, tensor) for name, tensor in tensors.items()),
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        num_files=len(files),
        dtypes=dict(dtypes.most_common()),
        num_half_bytes=sum(_num_half_bytes(name, tensor) for name, tensor in tensors.items()),
    )


def _num_half_bytes(name: str, tensor: StoredTensor) -> int:
    if DTYPES[tensor.dtype].is_floating_point and not name.endswith(SCALING_SUFFIXES):
        return tensor.num_elements * HALF_BYTES
    return tensor.num_bytes


def _num_parameters(name: str, tensor: StoredTensor) -> int:
    if name.endswith(SCALING_SUFFIXES):
        return 0
    if name.endswith(PACKED_SUFFIXES):
        return tensor.num_bytes * 8 // PACKED_BITS
    return tensor.num_elements


def read_headers(folder: Path) -> dict[Path, dict[str, StoredTensor]]:
    """File -> its tensors by name, of one part, held to each other and to the index if any."""
    listed = tensor_files(folder)
    headers = {path: read_header(path) for path in listed}
    owners: dict[str, Path] = {}
    for path, header in headers.items():
        for name in header:
            if name in owners:
                raise CheckpointError(
                    f"{path}: {name} is also in {owners[name].name}; one of the two files is left "
                    "over from another checkpoint: download the folder again"
                )
            owners[name] = path
    for path, promised in listed.items():
        absent = sorted(promised - headers[path].keys())
        if absent:
            raise CheckpointError(
                f"{path} has no {absent[0]}, which the index beside it promises"
                f"{_and_more(absent)}; download this file and the index again"
            )
    return headers


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one file, whose length is held to what its header promises."""
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(POINTER_START))
            if start == POINTER_START:
                raise CheckpointError(
                    f"{path} is a git-lfs pointer of {num_bytes} bytes, not the weights; run "
                    "`git lfs install && git lfs pull` in its folder"
                )
            file.seek(0)
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            begin = LENGTH_BYTES + header_bytes
            if header_bytes == 0 or header_bytes > MAX_HEADER_BYTES or begin > num_bytes:
                raise ValueError(f"{num_bytes} bytes, of which {header_bytes} would be a header")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        tensors = {name: _entry(name, entry, begin) for name, entry in header.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is truncated or corrupt, or no safetensors file ({error}); download it again"
        ) from None
    expected = max((item.begin + item.num_bytes for item in tensors.values()), default=begin)
    if num_bytes != expected:
        raise CheckpointError(
            f"{path} is truncated or corrupt: it has {num_bytes} bytes, its header promises "
            f"{expected}; download it again"
        )
    return tensors


def _entry(name: str, entry: dict[str, Any], data_begin: int) -> StoredTensor:
    """One entry of a header; ValueError where it contradicts itself."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if dtype not in DTYPES:
        raise ValueError(f"{name} has the dtype {dtype}; one of {', '.join(DTYPES)} is known")
    num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if begin < 0 or end - begin != num_bytes or any(size < 0 for size in shape):
        raise ValueError(f"{name}: {dtype} {list(shape)} in bytes {begin} to {end}")
    return StoredTensor(dtype, shape, data_begin + begin, num_bytes)

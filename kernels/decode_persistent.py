# SPDX-License-Identifier: Apache-2.0
"""All layers of a decode step in one launch, for GPUs whose blocks can wait for each other."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.kernels import build
from nvila_ros.kernels.decode_plan import STAGE_BYTES, Device
from nvila_ros.kernels.packing import ROWS_GROUP, RowsInt4

SOURCE = "decode_persistent.cu"
LOOKING_WARPS, MAX_SPLITS = 4, 32
UNIT_INPUTS = 2 * ROWS_GROUP
WARPS = (12, 16)  # of a block: 168 or 128 registers a thread
MAX_STAGES = 6
EXTRA: dict[str, int] = {}  # more defines, to try variants


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the code is compiled for."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def is_supported(self) -> bool:
        """Whole units everywhere, and at most 16 query heads to a key-value head."""
        inputs = (self.hidden, self.intermediate, self.num_heads * self.head_dim)
        repeats = self.num_heads // self.num_kv_heads
        whole = not any(count % UNIT_INPUTS for count in inputs)
        return whole and self.head_dim in (64, 128) and repeats <= 16

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """(inputs, pairs of outputs) of qkv, output, gate_up and down."""
        queries = self.num_heads * self.head_dim
        all_pairs = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim // 2
        back = -(-self.hidden // 16) * 8
        return (
            (self.hidden, all_pairs),
            (queries, back),
            (self.hidden, self.intermediate),
            (self.intermediate, back),
        )

    @property
    def num_tagged(self) -> int:
        """Words through which blocks send values: q | k | v, mixed, hidden twice, inner."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return heads * self.head_dim + 2 * self.hidden + self.intermediate


@functools.cache
def plan(sizes: Sizes, device: Device) -> tuple[Mapping[str, int], int] | None:
    """(defines, bytes of shared memory); None where the decoder does not fit this GPU."""
    if not sizes.is_supported or sizes.num_kv_heads > device.num_multiprocessors:
        return None
    num_blocks = device.num_multiprocessors
    for num_warps in WARPS:
        for stages in range(MAX_STAGES, 1, -1):
            needed = _shared_bytes(sizes, num_warps, stages, num_blocks)
            if needed + 1024 <= device.block_bytes:
                return defines(sizes, num_warps, stages, num_blocks), needed
    return None


def defines(sizes: Sizes, num_warps: int, stages: int, num_blocks: int) -> Mapping[str, int]:
    """What `SOURCE` is compiled with."""
    return {
        "HIDDEN": sizes.hidden,
        "INTERMEDIATE": sizes.intermediate,
        "NUM_HEADS": sizes.num_heads,
        "NUM_KV_HEADS": sizes.num_kv_heads,
        "HEAD_DIM": sizes.head_dim,
        "THREADS": 32 * num_warps,
        "STAGES": stages,
        "BLOCKS": num_blocks,
        **EXTRA,
    }


def _shared_bytes(sizes: Sizes, num_warps: int, stages: int, num_blocks: int) -> int:
    """As `Room` in the source divides it."""
    most_inputs = max(sizes.intermediate, sizes.num_heads * sizes.head_dim)
    sums = 0
    for inputs, pairs in sizes.phases:
        share = -(-pairs // num_blocks)
        slots = -(-share // 8) * 16
        sums = max(sums, inputs // UNIT_INPUTS * (slots + 4))
    residual = 2 * -(-sizes.phases[1][1] // num_blocks)
    floats = sum(-(-count // 4) * 4 for count in (sums, most_inputs // ROWS_GROUP, residual)) + 160
    tile = (2 * LOOKING_WARPS * 16 + 16) * (sizes.head_dim + 8) * 2
    tile = max(tile, 4 * LOOKING_WARPS * 16 * (sizes.head_dim + 8))
    start = 2 * max(sizes.hidden, sizes.num_heads * sizes.head_dim) + 32
    return num_warps * stages * STAGE_BYTES + 4 * floats + max(2 * most_inputs, start + tile)


class _Arguments(ctypes.Structure):
    """The source's `Arguments`: pointers, then numbers."""

    _fields_ = (
        ("pointers", ctypes.c_void_p * 9),
        ("num_layers", ctypes.c_int),
        ("cache_length", ctypes.c_int),
        ("eps", ctypes.c_float),
    )


class PersistentLayers:
    """The launch and its fixed buffers. token (1,), place (2,): int32 on the device."""

    def __init__(
        self, sizes: Sizes, device: Device, matrices: Sequence[Sequence[RowsInt4]],
        vectors: Sequence[tuple[Tensor | None, Tensor, Tensor]], keys: Tensor, values: Tensor,
    ) -> None:  # fmt: skip
        """matrices: qkv, output, gate_up, down of each layer; vectors: qkv's bias, both norms."""
        found = plan(sizes, device)
        assert found is not None, sizes
        self._defines, self._shared_bytes = found
        self._num_blocks, self._num_layers = device.num_multiprocessors, len(keys)
        self._cache_length = keys.shape[2]
        self._kept = (matrices, vectors, keys, values)  # the table holds bare addresses
        rows = []
        for index, (layer, (bias, *norms)) in enumerate(zip(matrices, vectors, strict=True)):
            codes = [matrix.qweight for matrix in layer]
            scales = [matrix.scale_zero for matrix in layer]
            parts = [*codes, *scales, bias, *norms, keys[index], values[index]]
            rows.append([0 if part is None else part.data_ptr() for part in parts])
        self._layers = torch.tensor(rows, dtype=torch.int64, device=keys.device)
        kind, where = torch.int32, keys.device
        splits = min(device.num_multiprocessors // sizes.num_kv_heads, MAX_SPLITS)
        self._tagged = torch.zeros(sizes.num_tagged, dtype=kind, device=where)
        self._found = torch.zeros(
            sizes.num_heads * splits * (sizes.head_dim + 2) * 2, dtype=kind, device=where
        )
        self._state = torch.zeros(2, dtype=kind, device=where)

    def launch(
        self, token: Tensor, place: Tensor, table: Tensor, cos_sin: Tensor, hidden: Tensor,
        eps: float,
    ) -> None:  # fmt: skip
        """Embeds the token and runs every layer; `hidden` (1, D) is the last one's output."""
        tensors = (
            self._layers, token, place, table, cos_sin, hidden, self._tagged, self._found,
            self._state,
        )  # fmt: skip
        addresses = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        arguments = _Arguments(addresses, self._num_layers, self._cache_length, eps)
        build.load(SOURCE, self._defines).kernel("decode_step").launch(
            grid=(self._num_blocks,),
            block=(self._defines["THREADS"],),
            args=[arguments],
            shared_bytes=self._shared_bytes,
            cooperative=True,
        )

# SPDX-License-Identifier: Apache-2.0
"""All layers of a decode step in one launch, for GPUs whose blocks can wait for each other."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from nvila_ros.kernels import build, driver
from nvila_ros.kernels.decode_persistent_plan import PHASES, TILE_KEYS, Cut
from nvila_ros.kernels.packing import RowsInt4

SOURCE = "decode_persistent.cu"


class Arguments(ctypes.Structure):
    """The source's `Arguments`: pointers, then numbers."""

    _fields_ = (
        ("pointers", ctypes.c_void_p * 10),
        ("cache_length", ctypes.c_int),
        ("eps", ctypes.c_float),
    )


class PersistentLayers:
    """The launch and its fixed buffers.

    Scales and zero points are kept a second time, in the order in which blocks read them: 6 % of
    the weights' bytes. One stream at a time: two launches at once would read each other's words.
    """

    def __init__(
        self, cut: Cut, matrices: Sequence[Sequence[RowsInt4]],
        vectors: Sequence[tuple[Tensor | None, Tensor, Tensor]], keys: Tensor, values: Tensor,
    ) -> None:  # fmt: skip
        """matrices: qkv, output, gate_up, down of each layer; vectors: qkv's bias, both norms."""
        self.cut = cut
        self._kept = (matrices, vectors, keys, values)  # the table holds bare addresses
        self._cache_length = keys.shape[2]
        rows = []
        for index, (bias, *norms) in enumerate(vectors):
            parts = [bias, *norms, keys[index], values[index]]
            rows.append([0 if part is None else part.data_ptr() for part in parts])
        where, sizes = keys.device, cut.sizes
        self._layers = torch.tensor(rows, dtype=torch.int64, device=where)
        num_halves = sizes.num_layers * cut.layer_scale_bytes // 2
        self._scales = torch.empty(num_halves, dtype=torch.float16, device=where)
        start = 0
        for layer in matrices:
            for phase in PHASES:
                packed = cut.pack_scales(phase, layer[phase].scale_zero).flatten()
                self._scales[start : start + packed.numel()] = packed
                start += packed.numel()
        self._words = torch.zeros(sizes.num_words, dtype=torch.int64, device=where)
        found = sizes.num_heads * cut.max_splits * sizes.head_dim
        self._found = torch.zeros(found, dtype=torch.int32, device=where)
        self._epochs = torch.zeros(cut.num_blocks, dtype=torch.int32, device=where)
        self._maps = self._make_maps(self._boxes(matrices, keys, values))

    def _boxes(
        self, matrices: Sequence[Sequence[RowsInt4]], keys: Tensor, values: Tensor
    ) -> list[tuple[Tensor, tuple[int, int, int, int]]]:
        """What the copy engine reads, words in four dimensions, and in which boxes."""
        found = [
            (self.cut.view(phase, layer[phase].qweight), self.cut.box(phase))
            for layer in matrices
            for phase in PHASES
        ]
        tile = (1, 1, TILE_KEYS, 32)
        return [*found, (keys.view(torch.int32), tile), (values.view(torch.int32), tile)]

    def _make_maps(
        self, boxes: Sequence[tuple[Tensor, tuple[int, ...]]]
    ) -> ctypes.Array[driver.TensorMap]:
        """The source's `Maps`."""
        maps = [driver.tensor_map(tensor, box, swizzle=128) for tensor, box in boxes]
        return (driver.TensorMap * len(maps))(*maps)

    def arguments(
        self, token: Tensor, place: Tensor, table: Tensor, cos_sin: Tensor, hidden: Tensor,
        eps: float,
    ) -> Arguments:  # fmt: skip
        """token (1,), place (2,) int32; the rest as `launch` takes it."""
        tensors = (
            self._layers, self._scales, token, place, table, cos_sin, hidden, self._words,
            self._found, self._epochs,
        )  # fmt: skip
        addresses = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        return Arguments(addresses, self._cache_length, eps)

    def launch(
        self, token: Tensor, place: Tensor, table: Tensor, cos_sin: Tensor, hidden: Tensor,
        eps: float,
    ) -> None:  # fmt: skip
        """Embeds the token and runs every layer; `hidden` (1, D) is the last one's output."""
        build.load(SOURCE, self.cut.defines).kernel("decode_step").launch(
            grid=(self.cut.num_blocks,),
            block=(32 * self.cut.num_warps,),
            args=[self.arguments(token, place, table, cos_sin, hidden, eps), self._maps],
            shared_bytes=self.cut.shared_bytes,
            cooperative=True,
        )

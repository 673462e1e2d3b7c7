# SPDX-License-Identifier: Apache-2.0
"""Attention within each frame, straight from the fused q|k|v rows: Hopper, Triton or torch."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels import build, driver

SOURCE = "vision_attention.cu"
HOPPER = (9, 0)
TILE = 128  # queries, and keys, of a tile
HIGH, LOW = 64, 16  # columns of a head that one box holds, and the other
STAGES = 3  # blocks of keys in flight
BLOCK_BYTES = TILE * (HIGH + LOW) * 2
WIDE_VALUES = 0  # 1: the second box of values is as wide as the first, one product instead of two
THREADS = 384
LOG2_E = 1.4426950408889634


def shared_bytes(wide_values: int) -> int:
    """Queries, the rings of keys and values, barriers, room to align."""
    values = 2 * TILE * HIGH * 2 if wide_values else BLOCK_BYTES
    return BLOCK_BYTES + STAGES * (BLOCK_BYTES + values) + 2048


def defines(tokens: int, width: int) -> dict[str, int]:
    """The source's defines."""
    return {
        "WIDTH": width,
        "STAGES": STAGES,
        "TAKE_TURNS": 1,
        "WIDE_VALUES": WIDE_VALUES,
        "HAS_TAIL": int(tokens % TILE != 0),
    }


class FrameAttention:
    """softmax(q k^T / sqrt(d)) v per frame and head, with its buffers bound.

    qkv (F, P, 3 * heads * d) float16 -> out (F, P, heads * d) float16.
    """

    def __init__(self, qkv: Tensor, out: Tensor, num_heads: int) -> None:
        self.qkv, self.out, self.num_heads = qkv, out, num_heads
        self.frames, self.tokens = qkv.shape[:2]
        self.width = qkv.shape[2] // (3 * num_heads)
        self.launch = self._choose()

    def _choose(self):  # type: ignore[no-untyped-def]
        device = self.qkv.device
        if torch.cuda.get_device_capability(device) == HOPPER and self.width == 72:
            options = defines(self.tokens, self.width)
            self._kernel = build.load(SOURCE, options, device.index).kernel("vision_attention")
            heads = self.qkv.view(self.frames, self.tokens, 3 * self.num_heads, self.width)
            self._high = driver.tensor_map(heads, (1, TILE, 1, HIGH), 128)
            self._low = driver.tensor_map(heads, (1, TILE, 1, LOW), 32)
            return self._launch_hopper
        return self._launch_triton if _has_triton() else self._launch_torch

    def _launch_hopper(self, programmatic: bool = False) -> None:
        tiles = -(-self.tokens // TILE) * self.num_heads * self.frames
        scale = LOG2_E / self.width**0.5
        blocks = min(tiles, _num_multiprocessors(self.qkv.device))
        shape = [self.tokens, self.num_heads, self.frames]
        self._kernel.launch(
            grid=(blocks,),
            block=(THREADS,),
            args=[self._high, self._low, self.out, scale, *shape],
            shared_bytes=shared_bytes(WIDE_VALUES),
            programmatic=programmatic,
        )

    def _launch_triton(self, programmatic: bool = False) -> None:
        from nvila_ros.kernels import vision_triton

        vision_triton.attention(
            self.qkv.flatten(0, 1),
            self.out.flatten(0, 1),
            num_frames=self.frames,
            num_heads=self.num_heads,
        )

    def _launch_torch(self, programmatic: bool = False) -> None:
        split = self.qkv.view(self.frames, self.tokens, 3, self.num_heads, self.width)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # (F, heads, P, d) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        self.out.copy_(mixed.transpose(1, 2).flatten(2))


def ahead_of_time_hopper() -> Iterator[tuple[str, Mapping[str, object]]]:
    """What `build` compiles ahead for sm_90a: SigLIP's heads over frames of 448 pixels."""
    yield SOURCE, defines(1024, 72)


@functools.cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None

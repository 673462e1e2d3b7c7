# SPDX-License-Identifier: Apache-2.0
"""Attention within each frame: on Hopper over heads laid out apart, else over q|k|v in rows."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.errors import KernelError
from nvila_ros.kernels import build, vision_heads

SOURCE = "vision_attention.cu"
HOPPER = (9, 0)
STAGES = 3  # blocks of keys in flight
THREADS = 384
LOG2_E = 1.4426950408889634
_SLOTS = 2  # tiles whose queries are in shared memory
_KEY_BYTES = vision_heads.HIGH_BYTES + vision_heads.LOW_BYTES
SIGLIP_TOKENS = 1024  # of 448 pixels


def shared_bytes(stages: int = STAGES) -> int:
    """The rings of keys and values, the tiles' own, barriers and room to align."""
    ring = stages * (_KEY_BYTES + vision_heads.HIGH_BYTES)
    return ring + _SLOTS * (_KEY_BYTES + vision_heads.VALUE_LOW_BYTES) + 1024 + 512


def cluster_size(tokens: int) -> int:
    """Blocks that share their keys and values: as many as divide the blocks of a head's queries."""
    return 2 if vision_heads.num_blocks(tokens) % 2 == 0 else 1


def defines(tokens: int) -> dict[str, int]:
    """The source's defines."""
    return {
        "TOKENS": tokens,
        "STAGES": STAGES,
        "CLUSTER": cluster_size(tokens),
        "VALUES_APART": 0,
    }


def takes_heads(device: torch.device, tokens: int, width: int) -> bool:
    """Whether `HeadAttention` is for this device, with so many tokens and columns of a head."""
    is_hopper = torch.cuda.get_device_capability(device) == HOPPER
    return is_hopper and vision_heads.is_supported(tokens, width)


class HeadAttention:
    """softmax(q k^T / sqrt(d)) v per frame and head on Hopper, with its buffers bound.

    inputs (F, 3 * heads, bytes / 2) float16 as `vision_heads` lays them out, padding finite
    -> out (F, P, heads * 72) float16.
    """

    def __init__(
        self, inputs: Tensor, out: Tensor, extra_defines: Mapping[str, int] | None = None
    ) -> None:
        self.inputs, self.out = inputs, out
        self.frames, self.tokens = out.shape[:2]
        self.num_heads = inputs.shape[1] // 3
        expected = (self.frames, 3 * self.num_heads, vision_heads.num_bytes(self.tokens) // 2)
        if inputs.shape != expected or not inputs.is_contiguous():
            raise KernelError(f"heads of {tuple(inputs.shape)}, expected {expected}, contiguous")
        options = {**defines(self.tokens), **(extra_defines or {})}
        self._shared_bytes = shared_bytes(options["STAGES"])
        self._kernel = build.load(SOURCE, options, inputs.device.index).kernel("vision_attention")
        cluster = options["CLUSTER"]
        tiles = -(-vision_heads.num_blocks(self.tokens) // cluster) * self.num_heads * self.frames
        clusters = self._kernel.max_clusters(cluster, THREADS, self._shared_bytes)
        self._blocks = min(tiles, clusters) * cluster

    def launch(self, programmatic: bool = False) -> None:
        """Queues the kernel on the current stream."""
        scale = LOG2_E / vision_heads.WIDTH**0.5
        self._kernel.launch(
            grid=(self._blocks,),
            block=(THREADS,),
            args=[self.inputs, self.out, scale, self.num_heads, self.frames],
            shared_bytes=self._shared_bytes,
            programmatic=programmatic,
        )


class FrameAttention:
    """The same over rows of q|k|v, by Triton or torch.

    qkv (F, P, 3 * heads * d) float16 -> out (F, P, heads * d) float16.
    """

    def __init__(self, qkv: Tensor, out: Tensor, num_heads: int) -> None:
        self.qkv, self.out, self.num_heads = qkv, out, num_heads
        self.frames, self.tokens = qkv.shape[:2]
        self.width = qkv.shape[2] // (3 * num_heads)
        self.launch = self._launch_triton if _has_triton() else self._launch_torch

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
    """What `build` compiles ahead for sm_90a: SigLIP's frames of 448 pixels."""
    yield SOURCE, defines(SIGLIP_TOKENS)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None

# SPDX-License-Identifier: Apache-2.0
"""The vision tower's fast path: int8 linears, fused norms and attention over static buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvila_ros.errors import KernelError
from nvila_ros.kernels import build, vision_attention, vision_heads, vision_rows
from nvila_ros.kernels.vision_attention import FrameAttention, HeadAttention
from nvila_ros.kernels.w8a8 import BoundLinear, W8A8Linear, is_hopper
from nvila_ros.kernels.w8a8_hopper import BLOCK_K, FEW_ROWS, Epilogue

ROW_BYTES = 128
PATCH_INPUTS_MULTIPLE = 8  # columns: cuBLAS wants rows of a multiple of 16 bytes


@dataclass(frozen=True, kw_only=True)
class Int8Linear:
    """weight (N, K) int8, its rows aligned, weight_scale (N,) float32, bias (N,) float16."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True)
class VisionBlockWeights:
    """One pre-norm layer; norms are (D,) float16, `qkv` has the rows of q, k and v in turn."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    qkv: Int8Linear
    out: Int8Linear
    fc1: Int8Linear
    fc2: Int8Linear


@dataclass(frozen=True, kw_only=True)
class VisionWeights:
    """The tower: patches, positions and layers.

    patch_weight: (D, 3 * p * p, padded to a multiple of 8) float16; patch_bias (D,) float16
    positions: (P, D) float16
    """

    patch_weight: Tensor
    patch_bias: Tensor
    positions: Tensor
    blocks: tuple[VisionBlockWeights, ...]
    num_heads: int
    patch_size: int  # pixels
    eps: float


def is_available(device: torch.device) -> bool:
    """Whether this device has the fast path: an NVIDIA GPU from sm_80 up and a compiler."""
    return device.type == "cuda" and build.is_available(device.index or 0)


def pack_linear(*linears: nn.Linear | W8A8Linear) -> Int8Linear:
    """`nn.Linear`s (quantized here) or `W8A8Linear`s of the same inputs -> one, rows in turn."""
    parts = [
        linear if isinstance(linear, W8A8Linear) else W8A8Linear.from_linear(linear)
        for linear in linears
    ]
    biases = [
        part.weight_scale.new_zeros(part.out_features) if part.bias is None else part.bias.detach()
        for part in parts
    ]
    rows = torch.cat([part.weight for part in parts])
    return Int8Linear(
        weight=aligned_rows(len(rows), rows.shape[1], rows.device).copy_(rows),
        weight_scale=torch.cat([part.weight_scale for part in parts]),
        bias=torch.cat([bias.half() for bias in biases]),
    )


def pack_block(
    *,
    norm1: nn.LayerNorm,
    query: nn.Linear | W8A8Linear,
    key: nn.Linear | W8A8Linear,
    value: nn.Linear | W8A8Linear,
    out: nn.Linear | W8A8Linear,
    norm2: nn.LayerNorm,
    fc1: nn.Linear | W8A8Linear,
    fc2: nn.Linear | W8A8Linear,
) -> VisionBlockWeights:
    """A layer's modules -> its packed weights, on the modules' device."""
    return VisionBlockWeights(
        norm1_weight=norm1.weight.detach().half(),
        norm1_bias=norm1.bias.detach().half(),
        norm2_weight=norm2.weight.detach().half(),
        norm2_bias=norm2.bias.detach().half(),
        qkv=pack_linear(query, key, value),
        out=pack_linear(out),
        fc1=pack_linear(fc1),
        fc2=pack_linear(fc2),
    )


def pack_tower(
    *,
    patch_embedding: nn.Conv2d,
    positions: Tensor,
    blocks: Sequence[VisionBlockWeights],
    num_heads: int,
    eps: float,
) -> VisionWeights:
    """The convolution that cuts patches becomes a matrix; positions (P, D)."""
    flat = patch_embedding.weight.detach().half().flatten(1)  # (D, 3 * p * p)
    assert patch_embedding.bias is not None, "SigLIP's patch embedding has a bias"
    return VisionWeights(
        patch_weight=nn.functional.pad(flat, (0, -flat.shape[1] % PATCH_INPUTS_MULTIPLE)),
        patch_bias=patch_embedding.bias.detach().half(),
        positions=positions.detach().half(),
        blocks=tuple(blocks),
        num_heads=num_heads,
        patch_size=int(patch_embedding.kernel_size[0]),
        eps=eps,
    )


def aligned_rows(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows, columns) int8 zeros, every row at a multiple of 128 bytes: the copy engine's line."""
    padded = columns + -columns % ROW_BYTES
    return torch.zeros(rows, padded, dtype=torch.int8, device=device)[:, :columns]


class _Buffers:
    """What a pass writes, for the largest number of rows; a pass takes the first rows of each."""

    def __init__(self, weights: VisionWeights, max_frames: int, *, heads_apart: bool) -> None:
        device = weights.positions.device
        num_patches, width = weights.positions.shape
        inner = weights.blocks[0].fc1.weight.shape[0]
        rows = max_frames * num_patches

        def half(columns: int) -> Tensor:
            return torch.zeros(rows, columns, dtype=torch.float16, device=device)

        self.patches = half(weights.patch_weight.shape[1])  # past the real inputs it stays zero
        self.hidden = half(width)
        self.mixed = half(width)
        self.codes = torch.zeros(rows, width, dtype=torch.int8, device=device)
        self.wide_codes = aligned_rows(rows, inner, device)
        self.scales = torch.zeros(rows, dtype=torch.float32, device=device)
        blocks = -(-inner // BLOCK_K)
        self.block_scales = torch.zeros(blocks * rows, dtype=torch.float32, device=device)
        if heads_apart:  # then the rows' inner values are in float16 for few rows alone
            self.qkv = vision_heads.empty(max_frames, num_patches, weights.num_heads, device)
            few = (min(rows, FEW_ROWS), inner)
            self.inner = torch.zeros(few, dtype=torch.float16, device=device).flatten()
        else:  # one after the other in the same place
            self.qkv = half(max(3 * width, inner)).flatten()
            self.inner = self.qkv


class VisionEncoder:
    """Pixels to features; every buffer is allocated once, every launch is on the current stream.

    A call may be captured in a CUDA graph after one eager call with as many frames.
    """

    def __init__(self, weights: VisionWeights, max_frames: int) -> None:
        device = weights.positions.device
        if not is_available(device):
            raise KernelError(f"fast vision needs an NVIDIA GPU from sm_80 up, not {device}")
        self.weights = weights
        self.max_frames = max_frames
        self.programmatic = is_hopper(device)  # kernels start while the one before them ends
        self.num_patches, width = weights.positions.shape
        inner = weights.blocks[0].fc1.weight.shape[0]
        self.fuse_inner = is_hopper(device) and inner % 16 == 0  # fc1 quantizes what fc2 reads
        head_width = width // weights.num_heads
        self.heads_apart = self.fuse_inner and vision_attention.takes_heads(
            device, self.num_patches, head_width
        )
        self._buffers = _Buffers(weights, max_frames, heads_apart=self.heads_apart)
        self._passes: dict[int, list[Callable[[Tensor], object]]] = {}

    def inner_block(self, frames: int) -> int | None:
        """Columns of the MLP's inner values that share a scale; None: a scale for the whole row."""
        is_few = frames * self.num_patches <= FEW_ROWS  # here a pass of its own is faster
        return BLOCK_K if self.fuse_inner and not is_few else None

    def encode(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """(F, 3, S, S) float16 in [-1, 1], F <= max_frames -> (F, P, D) float16, no final norm.

        `out` is contiguous.
        """
        frames = pixels.shape[0]
        assert 1 <= frames <= self.max_frames, f"{frames} frames, room for {self.max_frames}"
        if frames not in self._passes:
            self._passes[frames] = self._plan(frames)
        hidden = self._embed(pixels)
        features = torch.empty_like(hidden) if out is None else out.view(hidden.shape)
        for step in self._passes[frames]:
            step(features)
        return features.view(frames, self.num_patches, -1)

    def _embed(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) -> the hidden rows (F * P, D): patches times the matrix, plus positions."""
        weights, buffers = self.weights, self._buffers
        frames, channels, side, _ = pixels.shape
        size = weights.patch_size
        grid = side // size
        rows = frames * grid * grid
        assert grid * grid == self.num_patches, f"{side} pixels are {grid} patches of {size} a side"
        kept = pixels[:, :, : grid * size, : grid * size]
        cut = kept.reshape(frames, channels, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5)
        patches = buffers.patches[:rows]
        inputs = patches[:, : channels * size * size]
        inputs.view(frames, grid, grid, channels, size, size).copy_(cut)
        hidden = buffers.hidden[:rows]
        torch.addmm(weights.patch_bias, patches, weights.patch_weight.t(), out=hidden)
        hidden.view(frames, self.num_patches, -1).add_(weights.positions)
        return hidden

    def _attend(self, frames: int) -> tuple[Tensor, Epilogue, FrameAttention | HeadAttention]:
        """Where q|k|v go, how their product puts them there, and what reads them."""
        qkv, num_heads = self._buffers.qkv, self.weights.num_heads
        rows = frames * self.num_patches
        mixed = self._buffers.mixed[:rows].view(frames, self.num_patches, -1)
        if self.heads_apart:
            heads = qkv[:frames]
            to_heads = Epilogue(head_tokens=self.num_patches, from_end=True)
            return heads, to_heads, HeadAttention(heads, mixed)
        flat = qkv[: rows * 3 * mixed.shape[2]].view(rows, -1)
        attend = FrameAttention(flat.view(frames, self.num_patches, -1), mixed, num_heads)
        return flat, Epilogue(), attend

    def _plan(self, frames: int) -> list[Callable[[Tensor], object]]:
        """Every launch of the layers, with its buffers bound; each is given where features go.

        `from_end`: a kernel begins with the rows that the last one ended with, still in the cache.
        """
        buffers, weights, early = self._buffers, self.weights, self.programmatic
        rows = frames * self.num_patches
        hidden, mixed, codes = buffers.hidden[:rows], buffers.mixed[:rows], buffers.codes[:rows]
        scales, block_scales = buffers.scales[:rows], buffers.block_scales
        wide_codes = buffers.wide_codes[:rows]
        qkv, to_heads, attend = self._attend(frames)
        fuses = self.inner_block(frames) is not None
        inner = buffers.inner[: 0 if fuses else wide_codes.numel()].view(-1, wide_codes.shape[1])
        steps: list[Callable[[Tensor], object]] = []

        def norm(weight: Tensor, bias: Tensor, *, from_end: bool) -> None:
            steps.append(
                lambda _: vision_rows.layer_norm_quantize(
                    hidden, weight, bias, weights.eps, codes, scales,
                    programmatic=early, from_end=from_end,
                )
            )  # fmt: skip

        def quantize(source: Tensor, target: Tensor) -> None:
            steps.append(
                lambda _: vision_rows.quantize(
                    source, target, scales, programmatic=early, from_end=True
                )
            )

        def linear(source: Tensor, layer: Int8Linear, out: Tensor, epilogue: Epilogue) -> None:
            bound = BoundLinear(source, layer.weight, layer.weight_scale, layer.bias, epilogue)
            residual = out if epilogue.residual else None
            is_last = layer is weights.blocks[-1].fc2
            read = block_scales if epilogue.block_scales else scales
            written = block_scales if epilogue.codes_out else None
            steps.append(
                lambda features: bound.launch(
                    read, features if is_last else out, residual, written, programmatic=early
                )
            )

        for block in weights.blocks:
            norm(block.norm1_weight, block.norm1_bias, from_end=False)
            linear(codes, block.qkv, qkv, to_heads)
            steps.append(lambda _: attend.launch(programmatic=early))
            quantize(mixed, codes)
            linear(codes, block.out, hidden, Epilogue(residual=True))
            norm(block.norm2_weight, block.norm2_bias, from_end=True)
            if fuses:
                linear(codes, block.fc1, wide_codes, Epilogue(gelu=True, codes_out=True))
                of_blocks = Epilogue(residual=True, block_scales=True, from_end=True)
                linear(wide_codes, block.fc2, hidden, of_blocks)
                continue
            linear(codes, block.fc1, inner, Epilogue(gelu=True))
            quantize(inner, wide_codes)
            linear(wide_codes, block.fc2, hidden, Epilogue(residual=True))
        return steps

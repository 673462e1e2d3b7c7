# SPDX-License-Identifier: Apache-2.0
"""A loaded network's weights as the engine multiplies them: fused rows, int4 or float, int8 head.

Letters: D width, N outputs, K inputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nvila_ros.kernels import packing, reference
from nvila_ros.kernels.packing import Int4Weight, RowsInt4
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.config import LanguageConfig
from nvila_ros.models.language import LanguageModel

GROUP_SIZE = packing.ROWS_GROUP
HEAD_ROWS_AT_ONCE = 8192  # of the vocabulary; float32 copies of all rows would take gigabytes

Matrix = RowsInt4 | Tensor  # (N, K): int4 rows, or dense in the engine's dtype


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """One layer; q | k | v and gate | up are one matrix each."""

    input_norm: Tensor  # (D,)
    qkv: Matrix
    qkv_bias: Tensor | None
    output: Matrix
    post_norm: Tensor  # (D,)
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, kw_only=True)
class Head:
    """Next-token scores: int8 rows with a scale each, or dense rows without."""

    weight: Tensor  # (V, D) int8 or float
    scales: Tensor | None  # (V,) float32

    def rows(self, tokens: Tensor) -> Tensor:
        """(A,) int64 -> (A, D) float32, what the rows of these tokens stand for."""
        rows = self.weight[tokens].float()
        return rows if self.scales is None else rows * self.scales[tokens, None]


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """The whole decoder on one device."""

    config: LanguageConfig
    table: Tensor  # (V, D) embeddings
    layers: Sequence[DecoderLayer]
    norm: Tensor  # (D,)
    head: Head

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of all weights that are not packed."""
        return self.table.dtype

    @property
    def is_int4(self) -> bool:
        """Whether all matrices of the layers are packed."""
        return all(
            isinstance(matrix, RowsInt4)
            for layer in self.layers
            for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down)
        )


def pack_decoder(
    llm: LanguageModel, *, quantizes: bool = False, releases: bool = False
) -> DecoderWeights:
    """A loaded decoder -> the engine's weights; the head of an int4 decoder becomes int8.

    `quantizes` rounds float matrices to the nearest int4 code where their inputs divide into
    groups. `releases` empties each layer as soon as it is packed, so that two copies of one layer
    at most are in memory: the module cannot be used afterwards.
    """
    stack = llm.model
    layers = []
    for layer in cast(Sequence[Any], stack.layers):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [linear.bias for linear in qkv]
        dtype = stack.embed_tokens.weight.dtype
        layers.append(
            DecoderLayer(
                input_norm=layer.input_layernorm.weight.detach(),
                qkv=_pack(qkv, quantizes, dtype),
                qkv_bias=None if biases[0] is None else torch.cat([b.detach() for b in biases]),
                output=_pack((attention.o_proj,), quantizes, dtype),
                post_norm=layer.post_attention_layernorm.weight.detach(),
                gate_up=_pack((mlp.gate_proj, mlp.up_proj), quantizes, dtype),
                down=_pack((mlp.down_proj,), quantizes, dtype),
            )
        )
        if releases:
            layer.to("meta")
    table = stack.embed_tokens.weight.detach()
    head = table if llm.lm_head is None else llm.lm_head.weight.detach()
    is_int4 = isinstance(layers[0].down, RowsInt4)
    packed = DecoderWeights(
        config=llm.config,
        table=table,
        layers=layers,
        norm=stack.norm.weight.detach(),
        head=quantize_head(head) if is_int4 else Head(weight=head, scales=None),
    )
    if releases:
        llm.to("meta")
    return packed


def _pack(linears: Sequence[Any], quantizes: bool, dtype: torch.dtype) -> Matrix:
    """Linears of one input as one matrix; int4 only if all of them are or can be."""
    weights = [_int4(linear, quantizes) for linear in linears]
    rows = [packing.to_rows(weight) for weight in weights if weight is not None]
    if len(rows) == len(linears):
        return rows[0] if len(rows) == 1 else packing.concatenate_rows(rows)
    dense = [
        linear.dequantized() if isinstance(linear, W4A16Linear) else linear.weight.detach()
        for linear in linears
    ]
    return (dense[0] if len(dense) == 1 else torch.cat(dense)).to(dtype)


def _int4(linear: Any, quantizes: bool) -> Int4Weight | None:
    if isinstance(linear, W4A16Linear):
        return linear.int4_weight
    if quantizes and linear.in_features % GROUP_SIZE == 0:
        return round_to_nearest(linear.weight.detach())
    return None


def round_to_nearest(weight: Tensor) -> Int4Weight:
    """(N, K) float -> int4 codes with a scale and zero point per group; no calibration."""
    groups = weight.float().unflatten(1, (-1, GROUP_SIZE))  # (N, G, group)
    low, high = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
    scales = ((high - low) / 15).clamp(min=1e-7).half()
    steps = scales.float()
    zeros = (-low / steps).round().clamp(0, 15)
    codes = (groups / steps[..., None]).round().add_(zeros[..., None]).clamp_(0, 15)
    return Int4Weight(
        qweight=packing.pack(codes.to(torch.uint8).flatten(1)),
        zeros=zeros.to(torch.uint8),
        scales=scales,
    )


def quantize_head(weight: Tensor) -> Head:
    """(V, D) float -> int8 rows."""
    pieces = [reference.quantize_per_token(part) for part in weight.split(HEAD_ROWS_AT_ONCE)]
    codes, scales = zip(*pieces, strict=True)
    return Head(weight=torch.cat(codes), scales=torch.cat(scales))


def quantize_tower(root: nn.Module) -> None:
    """Put a `W8A8Linear` in the place of every float linear of a tower's layers."""
    for name, part in list(root.named_modules()):
        if isinstance(part, nn.Linear) and ".layers." in f".{name}":
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, W8A8Linear.from_linear(part))

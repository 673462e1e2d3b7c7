# SPDX-License-Identifier: Apache-2.0
"""One step of free decoding, all from the device's state: read a token, find the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from nvila_ros.kernels import decode
from nvila_ros.kernels.decode_step import DecodeStep, StepLayer, StepShape, StepWeights
from nvila_ros.models.runtime_cache import FixedCache
from nvila_ros.models.runtime_layers import feed_forward, multiply, next_token, queries
from nvila_ros.models.runtime_weights import DecoderWeights


class Step(Protocol):
    """Greedy decoding; the history keeps each token at the place where it is read."""

    history: Tensor  # (S or more,) int32

    def begin(self, token: Tensor, position: int) -> None:
        """Sets what the next `launch` reads, and at which place of the cache; token (1,) int32."""

    def launch(self) -> None:
        """Reads a token, finds the next, moves on; on the current stream, without the host."""


class ComposedStep:
    """The step from the engine's own pieces: dense weights, other widths, and off the GPU."""

    def __init__(self, weights: DecoderWeights, cache: FixedCache) -> None:
        self._weights, self._cache = weights, cache
        device = weights.device
        self.token = torch.zeros(1, dtype=torch.int32, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.history = torch.zeros(cache.max_tokens, dtype=torch.int32, device=device)

    def begin(self, token: Tensor, position: int) -> None:
        """See `Step`."""
        self.token.copy_(token)
        self.position.fill_(position)
        self.history[position : position + 1].copy_(token)

    def launch(self) -> None:
        """See `Step`."""
        weights, cache = self._weights, self._cache
        eps, head = weights.config.rms_norm_eps, weights.head
        in_sight = self.position + 1
        hidden = decode.embed(self.token, weights.table)  # (1, D)
        for index, layer in enumerate(weights.layers):
            query = queries(weights, cache, index, hidden, self.position, self.position)
            mixed = decode.attention(query, cache.keys[index], cache.values[index], in_sight)
            hidden = multiply(mixed, layer.output, residual=hidden)
            hidden = feed_forward(layer, eps, hidden)
        if head.scales is not None and decode.is_fast(hidden):
            decode.head_argmax(
                hidden, weights.norm, eps, (head.weight, head.scales), out=self.token,
                position=self.position, history=self.history,
            )  # fmt: skip
            return
        self.token.copy_(next_token(weights, hidden))
        self.history.scatter_(0, in_sight.long(), self.token)
        self.position.add_(1)


def make_step(weights: DecoderWeights, cache: FixedCache) -> Step:
    """The fused step where weights and device allow it."""
    head = weights.head
    if not weights.is_int4 or head.scales is None or not decode.is_fast(weights.table):
        return ComposedStep(weights, cache)
    config = weights.config
    return DecodeStep(
        StepWeights(
            table=weights.table,
            layers=cast(Sequence[StepLayer], weights.layers),
            norm=weights.norm,
            head=head.weight,
            head_scales=head.scales,
        ),
        StepShape(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
        ),
        cache.keys,
        cache.values,
        cache.cos_sin,
    )

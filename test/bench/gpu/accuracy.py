# SPDX-License-Identifier: Apache-2.0
"""How far the kernels are from float32, beside plain float16 products of the same codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from decision import action_trie
from shapes import config_of, random_decoder
from torch import Tensor

from nvila_ros.kernels import build
from nvila_ros.models.runtime_cache import FixedCache
from nvila_ros.models.runtime_decoder import Decoder
from nvila_ros.models.runtime_graphs import GraphPool
from nvila_ros.models.runtime_weights import DecoderLayer, DecoderWeights

PROMPT_TOKENS = 1088
ANSWER_TOKENS = 8


@torch.inference_mode()
def accuracy(device: torch.device, name: str = "lite8b") -> dict[str, Any]:
    """All layers over a prompt, the tree behind it, and a free answer after it."""
    config = config_of(name).language
    weights = random_decoder(config, device)
    tree = action_trie().tail
    embeds = torch.randn(PROMPT_TOKENS, config.hidden_size, device=device).half()
    ids = torch.tensor(tree.tokens, device=device)
    rows = torch.cat((embeds, weights.table[ids]))
    wanted = [PROMPT_TOKENS - 1, *range(PROMPT_TOKENS, len(rows))]
    tokens = sorted({token for branch in tree.branches for token in branch.tokens})

    def run(decoder: Decoder, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
        states = decoder.read(rows.to(dtype), 0, tree, wanted)
        scores = decoder.read(rows.to(dtype), 0, tree, wanted, tokens)
        last = decoder.read(embeds.to(dtype), 0, None, [PROMPT_TOKENS - 1])
        answer = [
            token
            for part in decoder.answer(last, PROMPT_TOKENS, ANSWER_TOKENS)
            for token in part
        ]  # fmt: skip
        return states, scores.softmax(-1), answer

    fast = run(_decoder(weights, torch.float16), torch.float16)
    with slow_twins():
        plain = run(_decoder(weights, torch.float16), torch.float16)
        exact = run(_decoder(_widened(weights), torch.float32), torch.float32)
    return {
        "layers": config.num_hidden_layers,
        "states_kernels": _error(fast[0], exact[0]),
        "states_plain_fp16": _error(plain[0], exact[0]),
        "probability_kernels": float((fast[1] - exact[1]).abs().max()),
        "probability_plain_fp16": float((plain[1] - exact[1]).abs().max()),
        "same_tokens_kernels": _num_same(fast[2], exact[2]),
        "same_tokens_plain_fp16": _num_same(plain[2], exact[2]),
        "tokens": ANSWER_TOKENS,
    }


@contextmanager
def slow_twins() -> Iterator[None]:
    """No op has a kernel meanwhile."""
    is_fast = build.is_fast
    build.is_fast = lambda tensor: False
    try:
        yield
    finally:
        build.is_fast = is_fast


def _decoder(weights: DecoderWeights, dtype: torch.dtype) -> Decoder:
    cache = FixedCache(weights.config, PROMPT_TOKENS + 64, weights.device, dtype)
    return Decoder(weights, cache, GraphPool(weights.device))


def _widened(weights: DecoderWeights) -> DecoderWeights:
    """The same codes and scales, all else in float32."""

    def widened(layer: DecoderLayer) -> DecoderLayer:
        bias = layer.qkv_bias
        return replace(
            layer,
            input_norm=layer.input_norm.float(),
            qkv_bias=None if bias is None else bias.float(),
            post_norm=layer.post_norm.float(),
        )

    layers = [widened(layer) for layer in weights.layers]
    return replace(
        weights, table=weights.table.float(), norm=weights.norm.float(), layers=layers
    )  # fmt: skip


def _error(got: Tensor, exact: Tensor) -> float:
    """Relative, by norms."""
    return float((got.float() - exact).norm() / exact.norm())


def _num_same(got: list[int], exact: list[int]) -> int:
    """Tokens before the first one that differs."""
    pairs = zip(got, exact, strict=True)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(exact))

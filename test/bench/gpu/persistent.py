# SPDX-License-Identifier: Apache-2.0
"""The decode step as one launch for all layers, beside the step of one launch per op."""

from __future__ import annotations

from typing import Any

import torch
from shapes import config_of, random_decoder
from timing import events_ms

from nvila_ros.kernels.decode_step import DecodeStep, StepShape, StepWeights
from nvila_ros.models.runtime_cache import FixedCache
from nvila_ros.models.runtime_graphs import GraphPool

CONTEXT, NUM_TOKENS = 1088, 64


@torch.inference_mode()
def persistent(device: torch.device) -> dict[str, Any]:
    """Both ways decode the same tokens from the same cache, by graph replays."""
    row: dict[str, Any] = {}
    for name in ("lite8b", "lite2b"):
        found = {way: _decode(name, device, way) for way in (False, True)}
        same = [one == other for one, other in zip(found[False][1], found[True][1], strict=True)]
        row[f"{name}_ops_ms"], row[f"{name}_persistent_ms"] = found[False][0], found[True][0]
        row[f"{name}_same_tokens"] = same.index(False) if False in same else len(same)
    return row


def _decode(name: str, device: torch.device, is_persistent: bool) -> tuple[float, list[int]]:
    """Milliseconds of one step, and the tokens."""
    torch.manual_seed(0)
    config = config_of(name).language
    weights = random_decoder(config, device)
    cache = FixedCache(config, 1536, device, torch.float16)
    cache.keys.normal_()
    cache.values.normal_()
    assert weights.head.scales is not None
    step = DecodeStep(
        StepWeights(
            table=weights.table, layers=weights.layers, norm=weights.norm,
            head=weights.head.weight, head_scales=weights.head.scales,
        ),
        StepShape(
            num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim, eps=config.rms_norm_eps,
        ),
        cache.keys, cache.values, cache.cos_sin, is_persistent=is_persistent,
    )  # fmt: skip
    token = torch.full((1,), 7, dtype=torch.int32, device=device)
    step.begin(token, CONTEXT)
    replay = GraphPool(device).capture(step.launch)
    step.begin(token, CONTEXT)
    for _ in range(NUM_TOKENS):
        replay()
    tokens = step.history[CONTEXT : CONTEXT + NUM_TOKENS].tolist()
    step.begin(token, CONTEXT)
    return events_ms(replay, 50), tokens

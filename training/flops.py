# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic a packed batch needs: what model FLOPs utilisation (MFU) divides by.

Counted as the PaLM paper does: two operations per weight and token forward, two for gradients by
inputs, two for gradients by weights, and attention's products; nothing that is only recomputed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

import torch
from torch import nn

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.projector import Projector

# Dense BF16 operations per second of a card's matrix units, from NVIDIA's data sheets.
PEAKS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
    ("RTX 5090", 209e12),
)


def peak_flops(device_name: str) -> float | None:
    """Dense BF16 operations per second of a card by its name; None where it is not known."""
    return next((peak for name, peak in PEAKS if name.lower() in device_name.lower()), None)


def batch_flops(
    config: NvilaConfig,
    segments: Sequence[int],
    num_tiles: int,
    num_targets: int,
    learns: Collection[str],
    adapts: Collection[str] = (),
) -> float:
    """Operations of a forward and backward pass over one packed sequence.

    `segments` are lengths of samples, `num_tiles` pass the tower, `num_targets` rows reach the
    head. `learns` names the parts whose weights learn, `adapts` those in which only adapters or
    norms do: gradients pass through these, their weights get none.
    """
    vision, language = config.vision, config.language
    passes = _passes(learns, adapts)
    patches = vision.grid_side**2
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = 2 * patches * (4 * width * width + 2 * width * inner) + 4 * patches * patches * width
    patchify = 2 * patches * width * vision.num_channels * vision.patch_size**2
    tower = num_tiles * (config.num_vision_layers * layer + patchify)
    projector = 2.0 * num_tiles * config.tokens_per_frame * _projector_weights(config)
    tokens = sum(segments)
    queries = language.num_attention_heads * language.head_dim
    keys = language.num_key_value_heads * language.head_dim
    size = language.hidden_size
    weights = size * (2 * queries + 2 * keys) + 3 * size * language.intermediate_size
    scores = sum(2.0 * length * length * queries for length in segments)  # causal: half of 4 L² d
    decoder = language.num_hidden_layers * (2.0 * tokens * weights + scores)
    head = 2.0 * num_targets * size * language.vocab_size
    return (
        passes["vision_tower"] * tower
        + passes["mm_projector"] * projector
        + passes["llm"] * (decoder + head)
    )


def _passes(learns: Collection[str], adapts: Collection[str]) -> dict[str, float]:
    """Times the forward pass's arithmetic, per part: 1 forward, 1 for inputs, 1 for weights.

    From the first part on in which anything learns, gradients by inputs are needed everywhere: in
    a learning stack they reach the earlier layers. (Its very first layer's are not; they count.)
    """
    passes, is_reached = {}, False
    for part in ("vision_tower", "mm_projector", "llm"):
        is_reached = is_reached or part in learns or part in adapts
        passes[part] = 1.0 + float(is_reached) + float(part in learns)
    return passes


@cache
def _projector_weights(config: NvilaConfig) -> int:
    """Weights of the projector's linears."""
    with torch.device("meta"):
        projector = Projector(config)
    return sum(m.weight.numel() for m in projector.modules() if isinstance(m, nn.Linear))

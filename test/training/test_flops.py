# SPDX-License-Identifier: Apache-2.0
"""Counted arithmetic is what torch's own counter sees of a step."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.flops import batch_flops, peak_flops

# Attention is a small share: torch's counter does not know the CPU's kernels of it.
VISION = VisionConfig(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=7,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)
LANGUAGE = LanguageConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=64,
    model_max_length=64,
)
PARTS = ("vision_tower", "mm_projector", "llm")
LENGTH, TILES, TARGETS = 24, 3, 5


def counted(learns: tuple[str, ...]) -> float:
    config = NvilaConfig(vision=VISION, language=LANGUAGE, mm_projector_type="mlp_downsample")
    model = Nvila.from_scratch(config)
    for part in PARTS:
        model.get_submodule(part).requires_grad_(part in learns)
    with FlopCounterMode(display=False) as counter:
        features = model.encode_frames(torch.randn(TILES, 3, 56, 56)).flatten(0, 1)
        embeds = torch.cat([features, torch.randn(LENGTH - len(features), 256)])
        hidden = model(embeds.unsqueeze(0))[0, -TARGETS:]
        model.logits(hidden).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "learns", [PARTS, ("llm",), ("mm_projector",), ("mm_projector", "llm"), ("vision_tower",)]
)
def test_a_step_is_what_the_counter_sees(learns):
    config = NvilaConfig(vision=VISION, language=LANGUAGE, mm_projector_type="mlp_downsample")
    ours = batch_flops(config, [LENGTH], TILES, TARGETS, learns)
    assert ours == pytest.approx(counted(learns), rel=0.08)


def test_adapters_let_gradients_pass_and_cost_two_thirds():
    config = NvilaConfig(vision=VISION, language=LANGUAGE, mm_projector_type="mlp_downsample")
    full = batch_flops(config, [LENGTH], TILES, TARGETS, PARTS)
    adapted = batch_flops(config, [LENGTH], TILES, TARGETS, (), PARTS)
    assert adapted == pytest.approx(full * 2 / 3)


def test_samples_attend_to_themselves_only():
    config = NvilaConfig(vision=VISION, language=LANGUAGE, mm_projector_type="mlp_downsample")
    together = batch_flops(config, [2000], 0, 0, ("llm",))
    apart = batch_flops(config, [1000, 1000], 0, 0, ("llm",))
    queries = LANGUAGE.num_attention_heads * LANGUAGE.head_dim
    scores = 3 * LANGUAGE.num_hidden_layers * 2 * (2000**2 - 2 * 1000**2) * queries
    assert together - apart == pytest.approx(scores)


def test_cards_are_known_by_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("A card of another maker") is None

# SPDX-License-Identifier: Apache-2.0
"""Estimated memory against what the allocator counted: weights to the byte, activations nearly."""

import pytest
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.footprint import (
    FLOAT_BYTES,
    HALF_BYTES,
    cache_bytes,
    footprints,
    num_prompt_tokens,
)
from nvila_ros.models.nvila import Nvila

NUM_FRAMES = 3


@pytest.fixture(scope="module")
def model():
    """A quarter of NVILA-Lite-8B's widths, one layer that runs in each part, in bfloat16."""
    config = NvilaConfig(
        vision=VisionConfig(
            hidden_size=288,
            intermediate_size=1076,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=448,
            patch_size=14,
        ),
        language=LanguageConfig(
            vocab_size=500,
            hidden_size=896,
            intermediate_size=4736,
            num_hidden_layers=1,
            num_attention_heads=7,
            num_key_value_heads=1,
            head_dim=128,
            max_position_embeddings=4096,
            model_max_length=4096,
        ),
        mm_projector_type="mlp_downsample_3x3_fix",
    )
    return Nvila.from_scratch(config).bfloat16().eval()


def peak_bytes(work):
    """The most that tensors made by `work` took at once, by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    waiting = [*recorded.profiler.kineto_results.experimental_event_tree()]
    changes = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    total = peak = 0
    for _, change in sorted(changes):
        total += change
        peak = max(peak, total)
    return peak


def test_weights_are_the_networks_own_bytes(model):
    expected = sum(tensor.nbytes for tensor in model.parameters())
    assert footprints(model.config, NUM_FRAMES)["fp16"].weights == expected


def test_the_cache_is_the_caches_own_bytes(model):
    cache = model.new_cache(num_prompt_tokens(model.config, NUM_FRAMES))
    assert cache_bytes(model.config, NUM_FRAMES) == cache.keys.nbytes + cache.values.nbytes


@torch.inference_mode()
def test_activations_are_a_little_below_the_estimate(model):
    vision, language = model.config.vision, model.config.language
    pixels = torch.rand(NUM_FRAMES, 3, 448, 448).bfloat16()
    patches = NUM_FRAMES * vision.grid_side**2
    tower = patches * (5 * vision.hidden_size + 2 * vision.intermediate_size) * HALF_BYTES
    assert 0.7 < peak_bytes(lambda: model.encode_frames(pixels)) / tower <= 1.0

    tokens = num_prompt_tokens(model.config, NUM_FRAMES)
    embeds = torch.rand(1, tokens, language.hidden_size).bfloat16()
    cache = model.new_cache(tokens)
    prefill = tokens * (7 * language.hidden_size + 3 * language.intermediate_size) * HALF_BYTES
    prefill += language.vocab_size * FLOAT_BYTES
    measured = peak_bytes(lambda: model.logits(model(embeds, cache=cache)[:, -1]))
    assert 0.7 < measured / prefill <= 1.0
    assert footprints(model.config, NUM_FRAMES)["fp16"].activations == max(tower, prefill)

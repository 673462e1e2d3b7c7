# SPDX-License-Identifier: Apache-2.0
"""Compiled layers answer as plain ones, share their graphs and take any length."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from nvila_ros.errors import ConfigError
from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.compiled import compile_layers
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.learner import checkpoint_layers

SEGMENTS = ((20, 12), (9, 30, 9), (40, 24))


def small_model() -> Nvila:
    vision = VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    language = LanguageConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        model_max_length=64,
    )
    config = NvilaConfig(vision=vision, language=language, mm_projector_type="mlp_downsample")
    return Nvila.from_scratch(config, seed=2, std=0.2)


def gradients(model: Nvila, segments: tuple[int, ...]) -> list[torch.Tensor]:
    """Of everything that a pass over frames and a packed sequence reaches."""
    generator = torch.Generator().manual_seed(sum(segments))
    features = model.encode_frames(torch.randn(2, 3, 56, 56, generator=generator))
    embeds = torch.randn(1, sum(segments), 32, generator=generator)
    positions = torch.cat([torch.arange(length) for length in segments])
    hidden = model(embeds, positions, None, SampleAttention(segments, "cpu", "dense"))
    model.zero_grad()
    (hidden.square().mean() + features.square().mean()).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
def test_layers_share_graphs_and_gradients_stay():
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = small_model(), small_model()
    counter = CompileCounter()
    compile_layers(compiled, backend=counter)
    checkpoint_layers(compiled)
    for segments in SEGMENTS:
        pairs = zip(gradients(compiled, segments), gradients(plain, segments), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    num_graphs = counter.frame_count
    assert num_graphs < 8  # layers that run
    for segments in ((17, 5), (8, 8, 31, 6)):
        gradients(compiled, segments)
    assert counter.frame_count == num_graphs
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_smaller_budget_of_activations_changes_no_gradient():
    torch._dynamo.reset()
    plain, compiled = small_model(), small_model()
    try:
        compile_layers(compiled, backend="aot_eager", budget=0.4)
        pairs = zip(gradients(compiled, (20, 12)), gradients(plain, (20, 12)), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    finally:
        torch._functorch.config.activation_memory_budget = 1.0


def test_a_budget_out_of_range_is_an_error():
    with pytest.raises(ConfigError, match="budget"):
        compile_layers(small_model(), budget=1.5)

# SPDX-License-Identifier: Apache-2.0
"""The decoder against Hugging Face's, and cached reading against uncached."""

import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.models.config import LanguageConfig
from nvila_ros.models.language import KeyValueCache, LanguageModel

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}


def ours(**changes) -> LanguageConfig:
    return LanguageConfig(**{**SIZES, "head_dim": 8, "model_max_length": 256, **changes})


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(params=["qwen2", "qwen2 tied", "llama", "linear rope", "large theta"])
def pair(request, tmp_path):
    """Hugging Face's model and ours with the same weights, read from what the former saved."""
    kind = request.param
    theta = 1_000_000.0 if kind == "large theta" else 10_000.0
    rope = {"rope_type": "default", "rope_theta": theta}
    if kind == "linear rope":
        rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": theta}
    if kind == "llama":
        config = transformers.LlamaConfig(**SIZES, rope_parameters=rope, tie_word_embeddings=False)
        reference = transformers.LlamaForCausalLM(config)
    else:
        tied = kind == "qwen2 tied"
        config = transformers.Qwen2Config(**SIZES, rope_parameters=rope, tie_word_embeddings=tied)
        reference = transformers.Qwen2ForCausalLM(config)
    randomised(reference).save_pretrained(tmp_path)
    factor = rope.get("factor", 1.0)
    model = LanguageModel(
        ours(
            rope_theta=theta,
            rope_linear_factor=factor,
            qkv_bias=kind != "llama",
            tie_word_embeddings=kind == "qwen2 tied",
        )
    )
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    return reference, model.eval()


def test_logits_equal_the_reference(pair):
    reference, model = pair
    ids = torch.randint(0, SIZES["vocab_size"], (2, 37))
    with torch.inference_mode():
        expected = reference(input_ids=ids).logits
        logits = model.logits(model(model.model.embed_tokens(ids)))
    assert torch.allclose(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def model():
    return randomised(LanguageModel(ours()))


def new_cache(length=64, batch_size=1):
    return KeyValueCache(ours(), length, batch_size=batch_size)


@pytest.mark.parametrize("pieces", [(20,), (12, 8), (12, 1, 1, 6), (1,) * 20])
def test_reading_in_pieces_equals_reading_at_once(model, pieces):
    embeds = torch.randn(2, 20, 32)
    cache = new_cache(batch_size=2)
    with torch.inference_mode():
        whole = model(embeds)
        parts = [model(piece, cache=cache) for piece in embeds.split(pieces, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)
    assert cache.length == 20


def test_rewinding_forgets_what_came_after(model):
    prompt, wrong, right = torch.randn(1, 9, 32), torch.randn(1, 3, 32), torch.randn(1, 4, 32)
    cache = new_cache()
    with torch.inference_mode():
        model(prompt, cache=cache)
        model(wrong, cache=cache)
        cache.rewind(9)
        continued = model(right, cache=cache)
        expected = model(torch.cat((prompt, right), dim=1))[:, 9:]
    assert torch.allclose(continued, expected, atol=1e-4)


def test_a_full_cache_refuses_more(model):
    with pytest.raises(ValueError, match="do not fit"):
        model(torch.randn(1, 9, 32), cache=new_cache(8))


def test_padding_on_the_right_changes_nothing(model):
    embeds = torch.randn(1, 11, 32)
    padded = torch.cat((embeds, torch.zeros(1, 5, 32)), dim=1)
    with torch.inference_mode():
        assert torch.allclose(model(padded)[:, :11], model(embeds), atol=1e-5)


def test_positions_per_sequence_equal_positions_of_each(model):
    embeds = torch.randn(2, 6, 32)
    positions = torch.stack((torch.arange(6), torch.arange(6) + 40))
    with torch.inference_mode():
        both = model(embeds, positions=positions)
        second = model(embeds[1:], positions=positions[1])
    assert torch.allclose(both[1:], second, atol=1e-5)


def test_half_precision_keeps_far_positions_apart(model):
    """The rotary table stays in float32 when the network does not."""
    model = model.to(torch.bfloat16)
    embeds = torch.randn(1, 6, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        here = model(embeds, positions=torch.arange(6))
        there = model(embeds, positions=torch.arange(6) + 201)
    assert torch.allclose(here.float(), there.float(), atol=0.1)

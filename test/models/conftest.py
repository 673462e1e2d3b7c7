# SPDX-License-Identifier: Apache-2.0
"""A network of a few thousand weights and the small tokenizer, for tests without a checkpoint."""

import copy

import pytest
import torch

from nvila_ros.kernels import reference
from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime_weights import quantize_head, round_to_nearest
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

WORDS = ("walk", "to", "the", "red", "sofa", "turn", "left", "right", "then", "stop", "door")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return build_nano_tokenizer(WORDS)


@pytest.fixture
def tiny_config(tokenizer: Tokenizer) -> NvilaConfig:
    return make_config(vocab_size=tokenizer.vocab_size)


@pytest.fixture
def tiny_model(tiny_config: NvilaConfig, tokenizer: Tokenizer) -> Nvila:
    model = Nvila.from_scratch(tiny_config, seed=1, std=0.2).eval()
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    return model


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny work is slower on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="make_config")
def make_config_fixture():
    return make_config


@pytest.fixture(name="make_language")
def make_language_fixture():
    return make_language


@pytest.fixture(name="as_rounded")
def as_rounded_fixture():
    return as_rounded


def as_rounded(model: Nvila) -> Nvila:
    """The plain float32 network of the values that `Engine.from_model(quantizes=True)` stands for.

    Its decoder's linears and head are dequantized; tower and projector are the model's own.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in model.llm.model.layers:
            for linear in (*layer.self_attn.children(), *layer.mlp.children()):
                int4 = round_to_nearest(linear.weight)
                linear.weight.copy_(
                    reference.dequantize_int4(int4.qweight, int4.zeros, int4.scales)
                )
        head = quantize_head(model.llm.lm_head.weight)
        model = model.float()
        model.llm.lm_head.weight.copy_(head.weight.float() * head.scales[:, None])
    return model


def make_config(*, vocab_size: int = 300, **changes) -> NvilaConfig:
    settings = {
        "vision": VisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=40,
            patch_size=8,
        ),
        "language": make_language(vocab_size=vocab_size),
        "mm_projector_type": "mlp_downsample_3x3_fix",
    }
    return NvilaConfig(**{**settings, **changes})


def make_language(**changes) -> LanguageConfig:
    settings = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "model_max_length": 512,
    }
    return LanguageConfig(**{**settings, **changes})

# SPDX-License-Identifier: Apache-2.0
"""A network of a few thousand weights and the small tokenizer, for tests without a checkpoint."""

import pytest
import torch

from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
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

# SPDX-License-Identifier: Apache-2.0
"""What tests of several rooms share: a network so small that a decision takes a millisecond."""

import signal

import pytest

from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

TINY_WORDS = ["go", "through", "the", "red", "door", "and", "stop", "at", "chair"]


@pytest.fixture(scope="session", autouse=True)
def interruptible_children():
    """Started in a shell's background, pytest ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and not _has_gpu():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu():
    import torch

    return torch.cuda.is_available()


def make_tiny_checkpoint():
    """(network, tokenizer) with random weights that are the same every time."""
    tokenizer = build_nano_tokenizer(TINY_WORDS)
    config = NvilaConfig(
        vision=VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=48,
            patch_size=16,
        ),
        language=LanguageConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
            model_max_length=512,
            tie_word_embeddings=True,
        ),
        mm_projector_type="mlp_downsample_3x3_fix",
        mm_vision_select_layer=-1,
    )
    model = Nvila.from_scratch(config, std=0.3)
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    return model, tokenizer


@pytest.fixture
def tiny_checkpoint():
    return make_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The same network as a checkpoint folder."""
    import torch

    from nvila_ros.models import weights

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    weights.save(folder, *make_tiny_checkpoint(), torch.float32)
    return folder

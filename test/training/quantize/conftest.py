# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of a few thousand weights, prompts with pictures, and the quantized checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_ros.models import weights
from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.quantize import recordings
from nvila_ros.training.quantize.run import QuantizeJob, quantize

INSTRUCTION = "Go through the red door and stop at the chair."


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_checkpoint(folder, **language):
    tokenizer = build_nano_tokenizer(INSTRUCTION.lower().replace(".", "").split())
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, **language}
    config = NvilaConfig(
        vision=VisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=40,
            patch_size=8,
        ),
        language=LanguageConfig(
            vocab_size=tokenizer.vocab_size,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            model_max_length=512,
            tie_word_embeddings=True,
            **sizes,
        ),
        mm_projector_type="mlp_downsample_3x3_fix",
    )
    model = Nvila.from_scratch(config, seed=3, std=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", ".bias")):
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    weights.save(folder, model, tokenizer, torch.float16)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return make_checkpoint(tmp_path_factory.mktemp("float") / "model")


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    random = np.random.default_rng(5)
    for number in range(4):
        picture = random.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    entries = [
        {
            "instruction": INSTRUCTION,
            "frames": [None] * (7 - length) + [f"{n % 4}.png" for n in range(length + 1)],
            "answer": f"The next action is turn left {15 * (1 + length % 3)} degrees.",
        }
        for length in range(5)
    ]
    (folder / recordings.PROMPTS_FILE).write_text(json.dumps({"format": 1, "prompts": entries}))
    return folder


@pytest.fixture(name="job", scope="session")
def job_fixture():
    return job


@pytest.fixture(name="make_checkpoint", scope="session")
def make_checkpoint_fixture():
    return make_checkpoint


def job(checkpoint, prompts, target, **changes):
    return QuantizeJob(
        **{"model": checkpoint, "target": target, "calibration": str(prompts), **changes}
    )


@pytest.fixture(scope="session")
def quantized(checkpoint, prompts, tmp_path_factory):
    target = tmp_path_factory.mktemp("quantized") / "model"
    return target, quantize(job(checkpoint, prompts, target))


@pytest.fixture(name="contents", scope="session")
def contents_fixture():
    return contents


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

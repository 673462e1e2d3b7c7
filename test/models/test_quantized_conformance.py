# SPDX-License-Identifier: Apache-2.0
"""What AutoAWQ itself answers on a tiny checkpoint that it quantized."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models import weights

DATA = Path(__file__).parents[1] / "data" / "conformance" / "autoawq"


@pytest.fixture(scope="module")
def expected():
    return load_file(DATA / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return weights.load_language_model(DATA / "quantized")


def test_dequantized_weights_are_autoawqs_bit_for_bit(model, expected):
    names = [key for key in expected if key.startswith("dequantized.")]
    for name in names:
        linear = model.get_submodule(name.removeprefix("dequantized.").removesuffix(".weight"))
        assert isinstance(linear, W4A16Linear)
        assert linear.dequantized().dtype == torch.float16
        assert torch.equal(linear.dequantized(), expected[name]), name
    assert len(names) == 7


@torch.inference_mode()
def test_logits_are_those_of_the_dequantized_model(model, expected):
    embeds = model.model.embed_tokens(expected["input_ids"])
    logits = model.logits(model(embeds[None])[0])
    assert torch.allclose(logits, expected["logits"], atol=1e-3, rtol=0)
    assert torch.equal(logits.argmax(-1), expected["logits"].argmax(-1))


def test_the_weights_stay_in_four_bits(model):
    linears = [part for part in model.modules() if isinstance(part, W4A16Linear)]
    stored = sum(
        tensor.nbytes for part in linears for tensor in (part.qweight, part.zeros, part.scales)
    )
    dense = sum(part.in_features * part.out_features * 2 for part in linears)
    assert len(linears) == 14
    assert stored < 0.3 * dense

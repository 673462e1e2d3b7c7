# SPDX-License-Identifier: Apache-2.0
"""The tower against Hugging Face's, on random weights."""

import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.models.config import VisionConfig
from nvila_ros.models.vision import PatchConvolution, VisionTower

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**SIZES, vision_use_head=False)
    model = transformers.SiglipVisionModel(config).eval()
    folder = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


def with_prefix(state):
    """Newer releases of transformers save without the prefix that the released files have."""
    return {
        f"vision_model.{key.removeprefix('vision_model.')}": value for key, value in state.items()
    }


@pytest.mark.parametrize("select_layer", [-1, -2])
def test_features_equal_the_selected_hidden_state(reference, select_layer):
    model, state = reference
    tower = VisionTower(VisionConfig(**SIZES), SIZES["num_hidden_layers"] + 1 + select_layer)
    tower.load_state_dict(with_prefix(state))
    pixels = torch.rand(2, 3, 40, 40) * 2 - 1
    with torch.inference_mode():
        expected = model(pixel_values=pixels, output_hidden_states=True).hidden_states[select_layer]
        features = tower(pixels)
    assert torch.allclose(features, expected, atol=1e-4)


def test_frames_of_a_batch_do_not_see_each_other(reference):
    tower = VisionTower(VisionConfig(**SIZES), 3)
    tower.load_state_dict(with_prefix(reference[1]))
    pixels = torch.rand(3, 3, 40, 40)
    with torch.inference_mode():
        assert torch.allclose(tower(pixels)[1:2], tower(pixels[1:2]), atol=1e-5)


@pytest.mark.parametrize("side", [40, 44])  # 44: the last four pixels are in no whole patch
def test_patches_in_training_are_those_of_the_convolution(side):
    torch.manual_seed(0)
    convolution = PatchConvolution(3, 24, kernel_size=8, stride=8).double()
    plain = torch.nn.Conv2d(3, 24, kernel_size=8, stride=8).double()
    plain.load_state_dict(convolution.state_dict())
    pixels = torch.randn(2, 3, side, side, dtype=torch.float64)
    patches, expected = convolution(pixels), plain(pixels)
    assert torch.allclose(patches, expected, rtol=0, atol=1e-12)
    assert patches.flatten(2).transpose(1, 2).is_contiguous()  # layers keep this order
    factors = torch.randn_like(expected)
    (patches * factors).sum().backward()
    (expected * factors).sum().backward()
    assert torch.allclose(convolution.weight.grad, plain.weight.grad, rtol=0, atol=1e-12)
    assert torch.allclose(convolution.bias.grad, plain.bias.grad, rtol=0, atol=1e-12)
    with torch.inference_mode():
        assert torch.equal(convolution(pixels), plain(pixels))

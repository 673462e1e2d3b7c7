# SPDX-License-Identifier: Apache-2.0
"""One product for query, key and value answers and learns as three do."""

import torch
from torch import nn

from nvila_ros.models.config import VisionConfig
from nvila_ros.models.vision import VisionTower
from nvila_ros.training.merged import merge_products


def small_tower() -> VisionTower:
    config = VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(4)
    tower = VisionTower(config, 2)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.2)
    return tower


def learned(tower: VisionTower) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output for two frames, and the gradient of every parameter that has one."""
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    found = tower(pixels)
    found.square().mean().backward()
    return found, {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}


def test_outputs_gradients_and_names_stay():
    plain, merged = small_tower(), small_tower()
    assert merge_products(merged) == 3
    (expected, gradients), (found, own) = learned(plain), learned(merged)
    torch.testing.assert_close(found, expected)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, msg=name)


def test_a_layer_with_an_adapter_stays():
    tower = small_tower()
    layers = tower.vision_model.encoder.layers
    layers[1].self_attn.k_proj = nn.Sequential(layers[1].self_attn.k_proj)
    assert merge_products(tower) == 2
    assert merge_products(tower) == 0, "merged twice"

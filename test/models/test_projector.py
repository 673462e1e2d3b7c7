# SPDX-License-Identifier: Apache-2.0
"""Order of channels, padding and stages of the projectors."""

import pytest
import torch
from torch import nn

from nvila_ros.models.projector import Projector, SpaceToChannel


@pytest.mark.parametrize(("side", "rate"), [(4, 2), (5, 2), (6, 3), (7, 3), (8, 3)])
def test_a_token_is_its_block_row_by_row(side, rate):
    patches = torch.rand(2, side * side, 5)
    tokens = SpaceToChannel(rate)(patches)
    tokens_side = -(-side // rate)
    assert tokens.shape == (2, tokens_side**2, rate * rate * 5)
    for index in range(tokens_side**2):
        row, column = divmod(index, tokens_side)
        expected = []
        for y in range(row * rate, row * rate + rate):
            for x in range(column * rate, column * rate + rate):
                inside = y < side and x < side
                expected.append(patches[:, y * side + x] if inside else torch.zeros(2, 5))
        assert torch.equal(tokens[:, index], torch.cat(expected, dim=-1))


def test_folding_comes_before_the_first_norm(make_config):
    kinds = [
        type(stage) for stage in Projector(make_config(mm_projector_type="mlp_downsample")).layers
    ]
    assert kinds == [SpaceToChannel, nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]


def test_three_by_three_has_the_released_stages(make_config):
    projector = Projector(make_config())
    shapes = {key: tuple(value.shape) for key, value in projector.state_dict().items()}
    assert {key: shape for key, shape in shapes.items() if key.endswith("weight")} == {
        "layers.1.weight": (216,),
        "layers.2.weight": (72, 216),
        "layers.4.weight": (72,),
        "layers.5.weight": (32, 72),
        "layers.7.weight": (32, 32),
    }


def test_gelu_is_the_exact_one(make_config):
    gelus = [stage for stage in Projector(make_config()).layers if isinstance(stage, nn.GELU)]
    assert [gelu.approximate for gelu in gelus] == ["none", "none"]

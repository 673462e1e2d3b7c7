# SPDX-License-Identifier: Apache-2.0
"""Order of channels, padding and stages of the projectors."""

import itertools

import pytest
import torch
from torch import nn

from nvila_ros.errors import ConfigError
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


@pytest.mark.parametrize(
    ("projector_type", "widths"),
    [
        ("mlp_downsample_2x2_fix", (96, 32)),
        ("mlp_downsample_3x3_s2", (216, 72, 24, 8, 32)),
        ("mlp_downsample_3x3_s2_new", (216, 96, 48, 24, 8, 32)),
    ],
)
def test_other_types_narrow_step_by_step(make_config, projector_type, widths):
    projector = Projector(make_config(mm_projector_type=projector_type))
    linears = [stage for stage in projector.layers if isinstance(stage, nn.Linear)]
    norms = [stage for stage in projector.layers if isinstance(stage, nn.LayerNorm)]
    shapes = [(linear.in_features, linear.out_features) for linear in linears]
    assert shapes == [*itertools.pairwise(widths), (32, 32)]
    assert [norm.normalized_shape for norm in norms] == [(width,) for width in widths[:-1]]


def test_an_unknown_type_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"'mlp2x_gelu'; one of .*3x3_s2_new"):
        make_config(mm_projector_type="mlp2x_gelu")


def test_gelu_is_the_exact_one(make_config):
    gelus = [stage for stage in Projector(make_config()).layers if isinstance(stage, nn.GELU)]
    assert [gelu.approximate for gelu in gelus] == ["none", "none"]

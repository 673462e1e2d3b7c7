# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the quantizers: folds that change nothing, codes that follow the formula."""

import pytest
import torch

from nvila_ros.kernels import packing, reference
from nvila_ros.models.config import LanguageConfig, VisionConfig
from nvila_ros.models.language import LanguageLayer, rotary_table
from nvila_ros.models.vision import VisionLayer
from nvila_ros.training.quantize import awq, rounding, smooth
from nvila_ros.training.quantize.statistics import InputStatistics, Recorder


def language_layer(num_key_value_heads=2):
    config = LanguageConfig(
        vocab_size=10,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        head_dim=32,
        max_position_embeddings=64,
        model_max_length=64,
    )
    torch.manual_seed(1)
    layer = LanguageLayer(config, 0).eval().requires_grad_(False)
    layer.input_layernorm.weight.normal_(1, 0.2)
    return layer, rotary_table(config, torch.arange(16))


def vision_layer():
    config = VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=40,
        patch_size=8,
    )
    torch.manual_seed(2)
    layer = VisionLayer(config).eval().requires_grad_(False)
    layer.layer_norm1.bias.normal_(0, 0.2)
    return layer


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
def test_folding_scales_into_a_decoder_layer_changes_nothing(num_key_value_heads):
    layer, rotary = language_layer(num_key_value_heads)
    hidden = torch.randn(1, 16, 128)
    expected = layer(hidden, rotary, None, None)
    scales = awq.LayerScales(
        attention=torch.rand(128) * 4 + 0.1,
        output=torch.rand(32 * num_key_value_heads) * 4 + 0.1,
        mlp=torch.rand(128) * 4 + 0.1,
        down=torch.rand(256) * 4 + 0.1,
    )
    awq.fold(layer, scales)
    torch.testing.assert_close(layer(hidden, rotary, None, None), expected, rtol=1e-5, atol=1e-5)


def test_folding_scales_into_a_tower_layer_changes_nothing():
    layer, hidden = vision_layer(), torch.randn(2, 25, 24)
    expected = layer(hidden)
    for norm, names in smooth.FOLDS:
        smooth.fold(layer, norm, names, torch.rand(24) * 4 + 0.1)
    torch.testing.assert_close(layer(hidden), expected, rtol=1e-5, atol=1e-5)


def test_codes_and_dequantizing_agree_bit_for_bit():
    torch.manual_seed(3)
    weight = torch.randn(24, 256) * torch.rand(24, 1)
    weight[3] = weight[3].abs() + 1  # a group without a negative weight still holds zero
    weight[5, :128] = 0
    low, high = rounding.group_ranges(weight)
    packed = rounding.to_int4(weight, low, high)
    dense = reference.dequantize_int4(packed.qweight, packed.zeros, packed.scales.float())
    assert torch.equal(dense, rounding.rounded(weight))
    steps = packed.scales.float().repeat_interleave(128, dim=1)
    assert ((dense - weight).abs() <= 0.51 * steps + 1e-6).all()
    assert (dense[5, :128] == 0).all()
    assert packing.unpack(packed.qweight).max() <= 15


def correlated_inputs(num_rows, width):
    mixing = torch.randn(width, width) / width**0.5
    return torch.randn(num_rows, width) @ mixing * torch.rand(width) * 3


def test_clipping_and_feedback_bring_the_outputs_closer():
    torch.manual_seed(4)
    weight, inputs = torch.randn(32, 256) ** 3, correlated_inputs(600, 256)
    statistics = InputStatistics(most_inputs=256)
    for part in inputs.split(100):
        statistics.add(part, with_gram=True)
    ones = torch.ones(256)
    gram, full = statistics.gram(ones), statistics.full_gram(ones)
    torch.testing.assert_close(full, inputs.t() @ inputs / 600, rtol=1e-4, atol=1e-4)

    def error(changed):
        return awq.relative_error(inputs, weight, changed)

    plain = error(rounding.rounded(weight))
    clipped = error(rounding.rounded(weight, *rounding.best_ranges(weight, gram)))
    done, low, high = rounding.compensated(weight, rounding.inverse_factor(full), gram)
    assert error(done) < clipped < plain
    packed = rounding.to_int4(done, low, high)
    dense = reference.dequantize_int4(packed.qweight, packed.zeros, packed.scales.float())
    assert torch.equal(dense, done)


def test_inputs_that_are_always_the_same_do_not_break_the_feedback():
    weight = torch.randn(8, 128)
    done, _, _ = rounding.compensated(weight, rounding.inverse_factor(torch.zeros(128, 128)), None)
    assert torch.allclose(done, rounding.rounded(weight), atol=1e-6)


def test_the_search_is_never_worse_than_rounding():
    layer, rotary = language_layer()
    recorder = Recorder(layer, awq.WATCHED, with_gram=True, most_inputs=0)
    recorder.is_keeping = True
    hidden = torch.randn(1, 16, 128) * (1 + 20 * (torch.arange(128) % 17 == 0))
    with recorder.watching():
        layer(hidden, rotary, None, None)
    packed = awq.quantize_layer(layer, recorder, rotary)
    for name, errors in packed.report["linears"].items():
        if name not in awq.UNCLIPPED:
            assert errors["awq"] <= errors["round_to_nearest"] * 1.001, name
    assert packed.codes is not packed.without_feedback  # too wide for feedback: equal codes
    assert all(packed.codes[name] is packed.without_feedback[name] for name in awq.LINEARS)


def test_int8_in_float_arithmetic_is_what_the_linear_answers():
    linear = torch.nn.Linear(40, 24).requires_grad_(False)
    inputs = torch.randn(7, 40)
    quantized = smooth.W8A8Linear.from_linear(linear)
    found = rounding.w8a8(inputs, linear.weight, linear.bias)
    torch.testing.assert_close(found, quantized(inputs), rtol=1e-5, atol=1e-5)


def test_smoothing_helps_where_a_channel_stands_out():
    layer = vision_layer()
    layer.layer_norm1.weight[3] = 60.0
    recorder = Recorder(layer, smooth.WATCHED, with_gram=False)
    recorder.is_keeping = True
    with recorder.watching():
        layer(torch.randn(2, 25, 24))
    packed, report = smooth.quantize_layer(layer, recorder)
    assert set(packed) == set(smooth.LINEARS)
    query = report["linears"]["self_attn.q_proj"]
    assert query["smoothquant"] < 0.5 * query["round_to_nearest"]
    assert report["alphas"]["layer_norm1"] is not None


def test_too_few_rows_say_nothing_about_how_channels_go_together():
    statistics = InputStatistics(most_inputs=256)
    statistics.add(torch.randn(300, 256), with_gram=True)
    assert statistics.full_gram(torch.ones(256)) is None
    statistics.add(torch.randn(300, 256), with_gram=True)
    assert statistics.full_gram(torch.ones(256)) is not None

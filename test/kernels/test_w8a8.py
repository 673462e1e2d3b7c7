# SPDX-License-Identifier: Apache-2.0
"""Int8 weights times int8 activations on a CPU, against float64 and against integers by hand."""

import pytest
import torch
from torch import nn

from nvila_ros.kernels import reference, w8a8, w8a8_hopper
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.kernels.w8a8_hopper import Epilogue

# (M, K, N): SigLIP's own, its K that is no multiple of a tile, odd ones, one row, none.
RISKY_SHAPES = [(17, 4304, 9), (1, 1152, 33), (3, 1, 1), (5, 1025, 7), (0, 16, 4), (64, 2064, 24)]


def random_codes(*shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def relative_error(outputs, expected):
    return float((outputs.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("m, k, n", RISKY_SHAPES)
def test_the_product_is_exact_and_scaled_once(m, k, n):
    torch.manual_seed(0)
    codes, weight = random_codes(m, k), random_codes(n, k)
    scales, weight_scale = torch.rand(m), torch.rand(n)
    bias, residual = torch.randn(n), torch.randn(m, n)
    integers = codes.long() @ weight.long().t()
    assert torch.equal(reference.integer_matmul(codes, weight).long(), integers)
    expected = integers.double() * scales.double()[:, None] * weight_scale + bias + residual
    for matmul in (reference.w8a8_matmul, w8a8.w8a8_matmul):
        outputs = matmul(codes, scales, weight, weight_scale, bias, residual, torch.float32)
        assert outputs.shape == (m, n)
        torch.testing.assert_close(outputs.double(), expected, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_do_not_saturate(sign):
    codes = torch.full((2, 4304), 127, dtype=torch.int8)
    weight = torch.full((3, 4304), sign * 127, dtype=torch.int8)
    outputs = w8a8.w8a8_matmul(codes, torch.ones(2), weight, torch.ones(3), dtype=torch.float32)
    assert outputs.unique().tolist() == [sign * 4304 * 127 * 127]


def test_tokens_are_quantized_by_their_own_largest_value():
    inputs = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [254.0, 3.0, 1.0]])
    codes, scales = w8a8.quantize_per_token(inputs)
    assert codes.tolist() == [[64, -127, 32], [0, 0, 0], [127, 2, 0]]  # halves go to even
    torch.testing.assert_close(scales, torch.tensor([2 / 127, 0.0, 2.0]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_stays_none_and_alone(poison):
    layer = W8A8Linear.from_linear(nn.Linear(8, 4))
    inputs = torch.ones(2, 8)
    inputs[0, 3] = poison
    outputs = layer(inputs)
    assert outputs[0].isnan().all() and outputs[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_becomes_int8_within_two_percent(dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(4304, 96, bias=bias)
    inputs = torch.randn(2, 3, 4304)
    outputs = W8A8Linear.from_linear(linear)(inputs.to(dtype))
    assert outputs.dtype == dtype and outputs.shape == (2, 3, 96)
    assert relative_error(outputs, linear(inputs).double()) < 0.02


def test_the_linear_is_its_dense_weight_on_quantized_tokens():
    torch.manual_seed(0)
    layer = W8A8Linear.from_linear(nn.Linear(1152, 40))
    inputs = torch.randn(9, 1152)
    codes, scales = reference.quantize_per_token(inputs)
    tokens = codes.double() * scales[:, None]
    expected = tokens @ layer.dequantized().double().t() + layer.bias.double()
    assert relative_error(layer(inputs), expected) < 1e-6


def test_buffers_are_named_as_the_checkpoint_names_them():
    layer = W8A8Linear(6, 4, bias=True)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in layer.state_dict().items()} == {
        "weight": (torch.int8, (4, 6)),
        "weight_scale": (torch.float32, (4,)),
        "bias": (torch.float32, (4,)),
    }
    restored = W8A8Linear.from_linear(nn.Linear(6, 4))
    layer.load_state_dict(restored.state_dict())
    inputs = torch.randn(3, 6)
    assert torch.equal(layer(inputs), restored(inputs))


def test_norm_and_gelu_are_quantized_from_float32():
    torch.manual_seed(0)
    hidden = torch.randn(5, 1152).half()
    weight, bias = torch.randn(1152), torch.randn(1152)
    normed = nn.functional.layer_norm(hidden.double(), (1152,), weight.double(), bias.double())
    for (codes, scales), expected in (
        (reference.layer_norm_quantize(hidden, weight, bias, 1e-5), normed),
        (reference.gelu_quantize(hidden), nn.functional.gelu(hidden.double(), approximate="tanh")),
    ):
        restored = codes.double() * scales[:, None]
        assert ((restored - expected).abs() <= 0.501 * scales[:, None]).all()


def test_every_product_of_one_to_eight_frames_can_be_compiled_ahead():
    ahead = list(w8a8.ahead_of_time_hopper())
    for frames in range(1, 9):
        rows = 1024 * frames
        fuses = rows > w8a8_hopper.FEW_ROWS  # as `VisionEncoder.inner_block` does
        inner = Epilogue(gelu=True, codes_out=fuses)
        outer = Epilogue(residual=True, block_scales=fuses, from_end=fuses)
        products = (
            (1152, Epilogue(head_tokens=1024, from_end=True)),
            (1152, Epilogue(residual=True)),
            (1152, inner),
            (4304, outer),
        )
        for inputs, epilogue in products:
            tiling = w8a8_hopper.choose_tiling(rows, inputs, epilogue)
            assert (w8a8_hopper.SOURCE, tiling.defines(epilogue)) in ahead, (frames, epilogue)

# SPDX-License-Identifier: Apache-2.0
"""Int4 on a CPU: small weights exactly as the twin, large ones through torch's bfloat16 kernel."""

import pytest
import torch

from nvila_ros.kernels import cpu_int4, packing, reference
from nvila_ros.kernels.packing import Int4Weight
from nvila_ros.kernels.w4a16 import W4A16Linear

BFLOAT16 = 6e-3  # of the largest output: inputs, scales and outputs are rounded to 8 bits


def random_weight(num_outputs, num_inputs, group_size=128):
    torch.manual_seed(num_outputs + num_inputs)
    groups = (num_outputs, num_inputs // group_size)
    return Int4Weight(
        qweight=packing.pack(torch.randint(0, 16, (num_outputs, num_inputs), dtype=torch.uint8)),
        zeros=torch.randint(0, 16, groups, dtype=torch.uint8),
        scales=(torch.rand(groups) / 64 + 0.001).half(),
    )


def twin(inputs, weight, bias=None):
    return reference.w4a16(inputs, weight.qweight, weight.zeros, weight.scales, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_weight_answers_bit_for_bit_as_the_twin(dtype):
    weight, inputs = random_weight(40, 256), torch.randn(2, 3, 256).to(dtype)
    bias = torch.randn(40).to(dtype)
    found = cpu_int4.linear(inputs, cpu_int4.prepare(weight, dtype), bias)
    assert found.dtype == dtype and torch.equal(found, twin(inputs, weight, bias))


@pytest.mark.parametrize("num_rows", [1, 7, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_large_weight_goes_through_torchs_kernel(monkeypatch, num_rows, with_bias):
    monkeypatch.setattr(cpu_int4, "MOST_DENSE_WEIGHTS", 0)
    weight, inputs = random_weight(64, 384), torch.randn(num_rows, 384)
    bias = torch.randn(64) if with_bias else None
    prepared = cpu_int4.prepare(weight, inputs.dtype)
    assert prepared.dense is None
    found = cpu_int4.linear(inputs, prepared, bias)
    exact = twin(inputs.double(), weight, None if bias is None else bias.double())
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < BFLOAT16 * exact.abs().max()


@pytest.mark.parametrize("shape", [(40, 256, 128), (64, 512, 512)], ids=["outputs", "group"])
def test_what_the_kernel_does_not_take_stays_dense(monkeypatch, shape):
    monkeypatch.setattr(cpu_int4, "MOST_DENSE_WEIGHTS", 0)
    weight = random_weight(*shape)
    inputs = torch.randn(5, shape[1])
    prepared = cpu_int4.prepare(weight, torch.float32)
    assert prepared.dense is not None
    assert torch.equal(cpu_int4.linear(inputs, prepared), twin(inputs, weight))


@torch.inference_mode()
def test_a_layer_notices_new_weights():
    layer = W4A16Linear(256, 24, bias=True, group_size=128)
    inputs = torch.randn(3, 256)
    assert torch.equal(layer(inputs), torch.zeros(3, 24))
    weight = random_weight(24, 256)
    state = {"qweight": weight.qweight, "zeros": weight.zeros, "scales": weight.scales}
    for assign in (False, True):
        layer.load_state_dict({**state, "bias": torch.ones(24)}, assign=assign)
        assert torch.equal(layer(inputs), twin(inputs, weight, torch.ones(24)))


def test_gradients_still_reach_the_inputs():
    layer = W4A16Linear(256, 24, bias=False, group_size=128)
    layer.scales.fill_(0.01)
    inputs = torch.randn(3, 256, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None and inputs.grad.isfinite().all()

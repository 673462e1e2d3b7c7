# SPDX-License-Identifier: Apache-2.0
"""Int8 on a CPU: the same codes and sums as the twin, bit for bit, whatever the rows hold."""

import pytest
import torch

from nvila_ros.kernels import cpu_int8, reference
from nvila_ros.kernels.w8a8 import W8A8Linear

RISKY_ROWS = {
    "usual": lambda: torch.randn(9, 40),
    "zeros": lambda: torch.cat((torch.zeros(2, 40), torch.randn(3, 40))),
    "nan": lambda: torch.randn(4, 40).index_fill_(1, torch.tensor([7]), torch.nan),
    "infinite": lambda: torch.randn(4, 40).index_fill_(1, torch.tensor([7]), torch.inf),
    "tiny": lambda: torch.randn(4, 40) * 1e-38,
    "huge": lambda: torch.randn(4, 40) * 1e37,
    "ties": lambda: torch.arange(-40, 40).float().view(2, 40) / 2,
    "none": lambda: torch.empty(0, 40),
    "half": lambda: torch.randn(4, 40).half(),
    "long": lambda: torch.randn(700, 1000),
    "many": lambda: torch.randn(2, 3, 40),
}


@pytest.mark.parametrize("make", RISKY_ROWS.values(), ids=RISKY_ROWS)
def test_quantizing_is_the_twins(make):
    torch.manual_seed(0)
    inputs = make()
    codes, scales = cpu_int8.quantize_per_token(inputs)
    expected_codes, expected_scales = reference.quantize_per_token(inputs)
    assert codes.dtype == torch.int8 and torch.equal(codes, expected_codes)
    torch.testing.assert_close(scales, expected_scales, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 16, 8), (33, 72, 40), (700, 192, 768), (0, 16, 8)])
@pytest.mark.parametrize("extras", ["", "bias", "bias residual"])
def test_the_product_is_the_twins(shape, extras):
    torch.manual_seed(1)
    rows, inputs, outputs = shape
    codes = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scales, weight_scale = torch.rand(rows) / 99, torch.rand(outputs) / 99
    bias = torch.randn(outputs) if "bias" in extras else None
    residual = torch.randn(rows, outputs) if "residual" in extras else None
    arguments = (codes, scales, weight, weight_scale, bias, residual, torch.float32)
    torch.testing.assert_close(
        cpu_int8.w8a8_matmul(*arguments), reference.w8a8_matmul(*arguments), rtol=2e-6, atol=2e-6
    )


def test_a_processor_that_saturates_takes_the_slow_way(monkeypatch):
    monkeypatch.setattr(cpu_int8, "is_exact", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    linear = W8A8Linear.from_linear(torch.nn.Linear(40, 24))
    inputs = torch.randn(5, 40)
    dense = torch.nn.functional.linear(inputs, linear.dequantized(), linear.bias)
    assert (linear(inputs) - dense).abs().max() < 0.02

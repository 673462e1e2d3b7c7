# SPDX-License-Identifier: Apache-2.0
"""Codes with a scale per row and block of columns: the twin by hand, Hopper's GEMMs against it."""

import pytest
import torch
from torch import nn

from nvila_ros.kernels import reference
from nvila_ros.kernels.w8a8 import BoundLinear
from nvila_ros.kernels.w8a8_hopper import BLOCK_K, Epilogue


def test_every_block_has_its_own_scale():
    inputs = torch.tensor([[1.0, -2.0, 254.0, 127.0, 0.0]])
    codes, scales = reference.quantize_blocks(inputs, 2)
    assert codes.tolist() == [[64, -127, 127, 64, 0]]
    torch.testing.assert_close(scales, torch.tensor([[2 / 127], [2.0], [0.0]]))
    dense = reference.dequantize_blocks(codes, scales, 2)
    torch.testing.assert_close(dense, torch.tensor([[128 / 127, -2.0, 254.0, 128.0, 0.0]]))


@pytest.fixture(scope="module")
def device():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("scales per block of columns are for Hopper")
    return torch.device("cuda", 0)


def random_codes(rows, columns, device):
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "m, k, n",
    [(8192, 1152, 4304), (1024, 1152, 4304), (17, 1168, 208), (1, 64, 192), (129, 16, 400)],
)
def test_the_gemm_quantizes_its_own_output(device, m, k, n):
    torch.manual_seed(m + n)
    codes, weight = random_codes(m, k, device), random_codes(n, k, device)
    scales, weight_scale = torch.rand(m, device=device) / 1e3, torch.rand(n, device=device) / 100
    scales[0] = 0
    bias = torch.randn(n, device=device).half()
    blocks = -(-n // BLOCK_K)
    out = torch.full((m + 8, n), -128, dtype=torch.int8, device=device)
    out_scales = torch.full((blocks * m + 8,), float("nan"), device=device)
    bound = BoundLinear(codes, weight, weight_scale, bias, Epilogue(gelu=True, codes_out=True))
    bound.launch(scales, out[:m], None, out_scales)
    expected = codes.double() @ weight.double().t() * scales.double()[:, None] * weight_scale
    expected = nn.functional.gelu(expected + bias, approximate="tanh")
    assert (out[m:] == -128).all() and out_scales[blocks * m :].isnan().all(), "wrote past the end"
    written = out_scales[: blocks * m].view(blocks, m)
    twin_codes, twin_scales = reference.quantize_blocks(expected.half(), BLOCK_K)
    torch.testing.assert_close(written, twin_scales, rtol=3e-3, atol=1e-7)
    assert (out[:m].int() - twin_codes.int()).abs().max() <= 1
    dense = reference.dequantize_blocks(out[:m], written, BLOCK_K)
    step = written.t().repeat_interleave(BLOCK_K, 1)[:, :n]
    assert ((dense - expected).abs() <= 0.6 * step + 1e-3 * expected.abs()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_broken_row_breaks_its_blocks_alone(device, poison):
    codes, weight = random_codes(3, 64, device), random_codes(256, 64, device)
    scales = torch.tensor([1e-3, poison, 1e-3], device=device)
    bias = torch.ones(256, device=device).half()
    out = torch.empty(3, 256, dtype=torch.int8, device=device)
    out_scales = torch.empty(2, 3, device=device)
    epilogue = Epilogue(gelu=True, codes_out=True)
    weight_scale = torch.ones(256, device=device)
    BoundLinear(codes, weight, weight_scale, bias, epilogue).launch(scales, out, None, out_scales)
    assert not out_scales[:, 1].isfinite().any()
    assert out_scales[:, ::2].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "m, k, n", [(8192, 4304, 1152), (1024, 4304, 1152), (17, 208, 72), (1, 192, 8), (300, 400, 200)]
)
def test_the_gemm_reads_scales_by_blocks(device, m, k, n):
    torch.manual_seed(m + n)
    codes, weight = random_codes(m, k, device), random_codes(n, k, device)
    scales = torch.rand(-(-k // BLOCK_K), m, device=device) / 1e3
    weight_scale = torch.rand(n, device=device) / 100
    bias, added = torch.randn(n, device=device).half(), torch.randn(m, n, device=device).half()
    out = torch.full((m + 8, n), float("nan"), dtype=torch.float16, device=device)
    epilogue = Epilogue(residual=True, block_scales=True)
    BoundLinear(codes, weight, weight_scale, bias, epilogue).launch(scales, out[:m], added)
    dense = reference.dequantize_blocks(codes, scales, BLOCK_K).double()
    expected = dense @ weight.double().t() * weight_scale + bias + added
    assert out[m:].isnan().all(), "wrote past the end"
    assert float((out[:m].double() - expected).norm() / expected.norm()) < 5e-4

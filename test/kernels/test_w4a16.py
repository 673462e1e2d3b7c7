# SPDX-License-Identifier: Apache-2.0
"""The int4 product: its twins against float64, its plans, and on a GPU its kernels against both."""

import pytest
import torch
import torch.nn.functional as F

from nvila_ros.kernels import packing, reference, w4a16_gemm
from nvila_ros.kernels.packing import RowsInt4
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.kernels.w4a16_gemm_plan import MOST_SHARED_BYTES, hopper_plan, mma_plan

ROUNDED_ONCE = 5e-4  # relative, fp32 sums: the weight and the output are rounded to fp16
HALF_SUMS = 7e-4  # fp16 sums inside a group of 128
RISKY_SHAPES = [  # (M, N, K)
    (9, 1001, 384),  # odd N: no 16-byte store, no whole tile
    (17, 72, 256),
    (64, 515, 1280),
    (65, 128, 128),  # one group
    (300, 4608, 3584),
    (1088, 3584, 18944),
]


def random_rows(num_outputs, num_inputs, device="cpu"):
    words = torch.randint(-(2**31), 2**31, (num_outputs, num_inputs // 8), device=device)
    scale = (torch.rand(num_outputs, num_inputs // 128, device=device) + 0.5) / 200
    zero = torch.randint(0, 16, scale.shape, device=device)
    scale_zero = torch.stack((scale.half(), zero.half()), dim=-1)
    return RowsInt4(qweight=words.to(torch.int32), scale_zero=scale_zero)


def exact_weight(rows):
    weight = packing.from_rows(rows)
    codes = packing.unpack(weight.qweight).double().unflatten(1, (weight.scales.shape[1], -1))
    centred = codes - weight.zeros.double().unsqueeze(-1)
    return (centred * weight.scales.double().unsqueeze(-1)).flatten(1)


def relative_error(found, exact):
    assert found.isfinite().all()
    return float((found.double() - exact).norm() / exact.norm())


def poisoned(*shape):
    return torch.full(shape, torch.nan, device="cuda", dtype=torch.float16)


def test_the_twin_adds_bias_and_residual():
    torch.manual_seed(0)
    rows, x = random_rows(37, 256), torch.randn(5, 256)
    bias, residual = torch.randn(37), torch.randn(5, 37)
    exact = x.double() @ exact_weight(rows).T + bias + residual
    assert relative_error(w4a16_gemm.w4a16_matmul(x, rows, bias, residual), exact) < ROUNDED_ONCE


def test_an_output_buffer_is_written_and_returned():
    rows, x = random_rows(16, 128), torch.randn(3, 128)
    out = torch.full((3, 16), torch.nan)
    assert w4a16_gemm.w4a16_matmul(x, rows, out=out) is out
    assert torch.equal(out, w4a16_gemm.w4a16_matmul(x, rows))


def test_gate_and_up_are_the_halves_of_the_rows():
    torch.manual_seed(0)
    rows, x = random_rows(48, 128), torch.randn(5, 128)
    gate, up = (x.double() @ exact_weight(rows).T).chunk(2, dim=-1)
    assert relative_error(w4a16_gemm.w4a16_gate_up(x, rows), F.silu(gate) * up) < ROUNDED_ONCE


@pytest.mark.parametrize("num_tokens", [9, 32, 33, 64, 128, 129, 320, 1088, 2200])
@pytest.mark.parametrize("num_rows", [515, 3584, 37888])
def test_plans_cover_everything_and_fit(num_tokens, num_rows):
    plan = hopper_plan(num_tokens, num_rows, 28, is_gate_up=False)
    assert plan.tile_tokens % 32 == 0 and plan.stages >= 2
    rows_of_a_tile = 128 * plan.height * plan.cluster
    assert plan.num_tiles * plan.tile_tokens * rows_of_a_tile >= num_tokens * num_rows
    assert plan.shared_bytes <= MOST_SHARED_BYTES
    small = mma_plan(num_tokens, num_rows, 28, 76)
    along, across, splits = small.grid
    assert along * small.tile_tokens >= num_tokens and across * 128 >= num_rows
    assert 1 <= splits <= 7  # a part of K holds at least four groups
    assert small.shared_bytes <= 99 * 1024  # GeForce


def test_the_linear_keeps_its_state_when_its_words_are_reordered():
    torch.manual_seed(0)
    linear = W4A16Linear(256, 24, bias=False, group_size=128)
    linear.load_state_dict(
        {
            "qweight": packing.pack(torch.randint(0, 16, (24, 256), dtype=torch.uint8)),
            "zeros": torch.randint(0, 16, (24, 2), dtype=torch.uint8),
            "scales": torch.rand(24, 2).half(),
        }
    )
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    dense, words = linear.dequantized(), linear.qweight
    linear._rows()
    assert not torch.equal(linear.qweight, words)
    assert torch.equal(linear.dequantized(), dense)
    after = linear.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    linear.load_state_dict(before)
    assert torch.equal(linear.qweight, words) and torch.equal(linear.dequantized(), dense)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", RISKY_SHAPES, ids=str)
@pytest.mark.parametrize("accumulate, tolerance", [("auto", HALF_SUMS), ("fp16", HALF_SUMS)])
def test_the_kernels_over_risky_shapes(shape, accumulate, tolerance):
    num_tokens, num_rows, num_inputs = shape
    torch.manual_seed(num_rows)
    rows = random_rows(num_rows, num_inputs, "cuda")
    x = torch.randn(num_tokens, num_inputs, device="cuda").half()
    bias = torch.randn(num_rows, device="cuda").half()
    residual = torch.randn(num_tokens, num_rows, device="cuda").half()
    out = poisoned(num_tokens, num_rows)
    w4a16_gemm.w4a16_matmul(x, rows, bias, residual, out=out, accumulate=accumulate)
    exact = x.double() @ exact_weight(rows).T + bias.double() + residual.double()
    assert relative_error(out, exact) < tolerance


@pytest.mark.gpu
def test_fp32_sums_on_the_path_of_every_gpu():
    rows, x = random_rows(515, 3584, "cuda"), torch.randn(130, 3584, device="cuda").half()
    out = poisoned(130, 515)
    w4a16_gemm._launch_mma(x, rows, None, None, out, is_half_sum=False)
    assert relative_error(out, x.double() @ exact_weight(rows).T) < ROUNDED_ONCE


@pytest.mark.gpu
@pytest.mark.parametrize("outlier", [1e3, 1e4])
def test_outliers_never_overflow_a_half_sum(outlier):
    torch.manual_seed(0)
    rows = random_rows(512, 18944, "cuda")
    x = torch.randn(64, 18944, device="cuda")
    x[::3, 5::97] = outlier  # the sum of one group passes 65504 many times over
    exact = x.half().double() @ exact_weight(rows).T
    exact = exact.clamp(-65504, 65504)
    found = w4a16_gemm.w4a16_matmul(x.half(), rows, accumulate="fp16").clamp(-65504, 65504)
    for some in (slice(0, None, 3), slice(1, None, 3)):  # rows with outliers, and without
        assert relative_error(found[some], exact[some]) < HALF_SUMS


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [9, 64, 300, 1088])
def test_gate_and_up_in_one_kernel(num_tokens):
    rows = random_rows(2 * 1000, 1536, "cuda")
    x = torch.randn(num_tokens, 1536, device="cuda").half()
    gate, up = (x.double() @ exact_weight(rows).T).chunk(2, dim=-1)
    out = w4a16_gemm.w4a16_gate_up(x, rows, out=poisoned(num_tokens, 1000))
    assert relative_error(out, F.silu(gate) * up) < 2 * ROUNDED_ONCE


@pytest.mark.gpu
def test_the_product_is_captured_and_repeats_bit_for_bit():
    rows, x = random_rows(3584, 3584, "cuda"), torch.randn(1088, 3584, device="cuda").half()
    first = w4a16_gemm.w4a16_matmul(x, rows)
    out = poisoned(1088, 3584)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        w4a16_gemm.w4a16_matmul(x, rows, out=out)
    for _ in range(3):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, first)


@pytest.mark.gpu
def test_the_linear_answers_through_the_kernels():
    torch.manual_seed(0)
    linear = W4A16Linear(1536, 256, bias=True, group_size=128)
    weight = packing.from_rows(random_rows(256, 1536))
    bias = torch.randn(256)
    state = {"qweight": weight.qweight, "zeros": weight.zeros, "scales": weight.scales}
    linear.load_state_dict(state | {"bias": bias})
    linear = linear.half().cuda()
    x = torch.randn(2, 9, 1536).half()
    with torch.inference_mode():
        found = linear(x.cuda()).cpu()
    exact = x.double() @ reference.dequantize_int4(**vars(weight)).double().T + bias.double()
    assert relative_error(found, exact) < HALF_SUMS
    assert torch.equal(linear.cpu().state_dict()["qweight"], weight.qweight)


@pytest.mark.gpu
def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"expected \(M, 256\)"):
        w4a16_gemm.w4a16_matmul(torch.ones(9, 128).half().cuda(), random_rows(8, 256, "cuda"))

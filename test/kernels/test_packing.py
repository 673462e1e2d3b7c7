# SPDX-License-Identifier: Apache-2.0
"""Int4 codes in and out of every checkpoint layout, against words written out by hand."""

import pytest
import torch

from nvila_ros.kernels import packing, reference
from nvila_ros.kernels.packing import Int4Weight
from nvila_ros.kernels.w4a16 import W4A16Linear

N, K, GROUP = 24, 256, 128


def random_codes(*shape):
    return torch.randint(0, 16, shape, dtype=torch.uint8)


@pytest.fixture
def weight():
    torch.manual_seed(0)
    return Int4Weight(
        qweight=packing.pack(random_codes(N, K)),
        zeros=random_codes(N, K // GROUP),
        scales=torch.rand(N, K // GROUP).half() / 16,
    )


def equal(first, second):
    return all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("qweight", "zeros", "scales")
    )


def as_int32(word):
    return word - 2**32 if word >= 2**31 else word


def test_the_lowest_bits_hold_the_first_code():
    words = packing.pack(torch.arange(8, dtype=torch.uint8)[None])
    assert words.tolist() == [[0x76543210]]
    assert packing.unpack(torch.tensor([[as_int32(0xFEDCBA98)]], dtype=torch.int32)).tolist() == [
        [8, 9, 10, 11, 12, 13, 14, 15]
    ]


def test_the_order_of_awqs_gemm_layout():
    words = packing.pack(torch.arange(8, dtype=torch.uint8)[None], packing.AWQ_GEMM_ORDER)
    assert words.tolist() == [[0x75316420]]


@pytest.mark.parametrize("order", [packing.SEQUENTIAL, packing.AWQ_GEMM_ORDER])
def test_unpacking_undoes_packing(order):
    codes = random_codes(5, 64)
    assert torch.equal(packing.unpack(packing.pack(codes, order), order), codes)


def test_awq_gemm_there_and_back(weight):
    stored = packing.to_awq_gemm(weight)
    assert [tuple(tensor.shape) for tensor in stored] == [(K, N // 8), (2, N // 8), (2, N)]
    assert equal(packing.from_awq_gemm(*stored), weight)


def test_awq_gemv_fills_its_last_word_with_what_is_not_read(weight):
    padded = torch.cat((weight.zeros, random_codes(N, 6)), dim=1)
    scales = torch.cat((weight.scales, torch.full((N, 6), torch.nan).half()), dim=1)
    found = packing.from_awq_gemv(weight.qweight, packing.pack(padded), scales, 2)
    assert equal(found, weight)


def test_compressed_zero_points_lie_along_the_outputs(weight):
    qzeros = packing.pack(weight.zeros.t()).t()
    assert tuple(qzeros.shape) == (N // 8, 2)
    assert equal(packing.from_compressed(weight.qweight, weight.scales, qzeros), weight)


def test_symmetric_weights_have_their_zero_in_the_middle(weight):
    found = packing.from_compressed(weight.qweight, weight.scales, None)
    assert found.zeros.unique().tolist() == [8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dequantizing_follows_the_formula(weight, dtype):
    codes = packing.unpack(weight.qweight)
    dense = reference.dequantize_int4(weight.qweight, weight.zeros, weight.scales.to(dtype))
    for n, k in [(0, 0), (3, 127), (3, 128), (N - 1, K - 1)]:
        group = k // GROUP
        exact = (int(codes[n, k]) - int(weight.zeros[n, group])) * weight.scales.to(dtype)[n, group]
        assert dense[n, k] == exact
    assert dense.dtype == dtype


@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_equals_a_dense_one(weight, bias):
    linear = W4A16Linear(K, N, bias=bias, group_size=GROUP)
    state = {"qweight": weight.qweight, "zeros": weight.zeros, "scales": weight.scales}
    linear.load_state_dict(state | ({"bias": torch.rand(N)} if bias else {}))
    inputs = torch.randn(2, 3, K)
    dense = torch.nn.functional.linear(inputs, linear.dequantized().float(), linear.bias)
    assert torch.equal(linear(inputs), dense)
    assert torch.equal(linear.bfloat16()(inputs.bfloat16()).isfinite(), torch.ones(2, 3, N) == 1)

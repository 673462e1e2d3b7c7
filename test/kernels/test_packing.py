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


def test_rows_hold_the_pairs_that_one_mask_takes_out():
    codes = torch.arange(128, dtype=torch.uint8)[None] % 16
    rows = packing.to_rows(
        Int4Weight(
            qweight=packing.pack(codes),
            zeros=torch.tensor([[7]], dtype=torch.uint8),
            scales=torch.tensor([[0.25]]),
        )
    )
    word = int(rows.qweight[0, 1])  # codes 8..15
    for pair in range(4):
        assert (word >> 4 * pair) & 0x000F000F == (8 + 2 * pair) | (9 + 2 * pair) << 16
    assert rows.scale_zero.tolist() == [[[0.25, 7.0]]]
    assert rows.scale_zero.dtype == torch.float16
    assert (rows.num_outputs, rows.num_inputs) == (1, 128)


def test_rows_there_and_back(weight):
    assert equal(packing.from_rows(packing.to_rows(weight)), weight)


def test_rows_one_after_the_other_are_one_linear(weight):
    rows = packing.to_rows(weight)
    both = packing.from_rows(packing.concatenate_rows([rows, rows]))
    assert torch.equal(both.qweight, torch.cat((weight.qweight, weight.qweight)))
    assert both.scales.shape == (2 * N, K // GROUP)


@pytest.mark.parametrize("group_size", [64, 256])
def test_rows_refuse_another_group_size(weight, group_size):
    narrow = Int4Weight(
        qweight=weight.qweight,
        zeros=weight.zeros[:, :1].expand(N, K // group_size).contiguous(),
        scales=weight.scales[:, :1].expand(N, K // group_size).contiguous(),
    )
    with pytest.raises(ValueError, match=f"groups of {group_size}.*quantize with group size 128"):
        packing.to_rows(narrow)


@pytest.mark.parametrize("to_order", [packing.SEQUENTIAL, packing.AWQ_GEMM_ORDER])
@pytest.mark.parametrize("order", [packing.SEQUENTIAL, packing.AWQ_GEMM_ORDER])
@pytest.mark.parametrize(("rows", "width"), [(8, 1), (128, 65), (24, 130), (8 * 449, 3)])
def test_transposed_words_hold_the_transposed_codes(order, to_order, rows, width):
    words = torch.randint(-(2**31), 2**31, (rows, width), dtype=torch.int64).int()
    expected = packing.pack(packing.unpack(words, order).t(), to_order)
    assert torch.equal(packing.transpose_codes(words, order, to_order), expected)

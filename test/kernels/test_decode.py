# SPDX-License-Identifier: Apache-2.0
"""Decode ops: the twins say what the model says, the kernels say what the twins say."""

import itertools

import pytest
import torch
from torch import Tensor

from nvila_ros.kernels import decode, packing, reference
from nvila_ros.kernels.packing import RowsInt4

EPS = 1e-6
# float16 outputs of float32 sums; relative, over the whole output
TOLERANCE = 6e-4
# two roundings and a SiLU between input and output
FUSED_TOLERANCE = 1.5e-3

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
gpu_param = pytest.param("cuda", marks=needs_gpu)
devices = pytest.mark.parametrize("device", ["cpu", gpu_param])


def make_rows(num_outputs: int, num_inputs: int, device: str, scale: float = 0.01) -> RowsInt4:
    shape = (num_outputs, num_inputs // 128)
    scales = (torch.rand(shape) + 0.5) * scale
    zeros = torch.randint(0, 16, shape)
    words = torch.randint(-(2**31), 2**31 - 1, (num_outputs, num_inputs // 8), dtype=torch.int32)
    pairs = torch.stack((scales, zeros.float()), dim=-1).half()
    return RowsInt4(qweight=words.to(device), scale_zero=pairs.to(device))


def dense(weight: RowsInt4) -> Tensor:
    """float64: codes and zero points are whole numbers, scales as they are stored."""
    codes = packing.unpack(weight.qweight.cpu(), packing.AWQ_GEMM_ORDER).double()
    pairs = weight.scale_zero.cpu().double()
    groups = codes.unflatten(1, (-1, 128)) - pairs[..., 1:]
    return (groups * pairs[..., :1]).flatten(1)


def normed(hidden: Tensor, weight: Tensor) -> Tensor:
    return reference.rms_norm(hidden.cpu(), weight.cpu(), EPS).double()


def poison(*shape: int, device: str) -> Tensor:
    return torch.full(shape, float("nan"), dtype=torch.float16, device=device)


def error(found: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(found).all()
    return float((found.cpu().double() - expected).norm() / expected.norm())


def halves(*shape: int, device: str, factor: float = 1.0) -> Tensor:
    return (torch.randn(shape) * factor).half().to(device)


@devices
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(77, 256), (1536, 1536), (40, 3584), (515, 8960), (130, 18944)])
def test_linear_of_every_length_and_odd_widths(
    device: str, num_rows: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    num_outputs, num_inputs = shape
    weight = make_rows(num_outputs, num_inputs, device)
    x = halves(num_rows, num_inputs, device=device)
    residual = halves(num_rows, num_outputs, device=device)
    bias = halves(num_outputs, device=device)
    product = x.cpu().double() @ dense(weight).t()
    out = poison(num_rows, num_outputs, device=device)
    found = decode.linear_residual(x, weight, residual, out=out)
    assert error(found, product + residual.cpu().double()) < TOLERANCE
    found = decode.w4a16_linear(x, weight, bias, out=out)
    assert error(found, product + bias.cpu().double()) < TOLERANCE


@devices
@pytest.mark.parametrize("magnitude", [1e3, 1e4])
def test_outliers_neither_overflow_nor_drown_the_rest(device: str, magnitude: float) -> None:
    torch.manual_seed(1)
    weight = make_rows(300, 3584, device, scale=1e-3)
    x = torch.randn(2, 3584)
    x[:, ::401] *= magnitude
    x = x.half().to(device)
    found = decode.w4a16_linear(x, weight, out=poison(2, 300, device=device))
    assert error(found, x.cpu().double() @ dense(weight).t()) < TOLERANCE


@devices
def test_residual_may_be_written_over(device: str) -> None:
    torch.manual_seed(2)
    weight = make_rows(64, 256, device)
    x, hidden = halves(1, 256, device=device), halves(1, 64, device=device)
    expected = x.cpu().double() @ dense(weight).t() + hidden.cpu().double()
    decode.linear_residual(x, weight, hidden, out=hidden)
    assert error(hidden, expected) < TOLERANCE


@devices
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8])
@pytest.mark.parametrize("intermediate, width", [(333, 1536), (64, 256), (1000, 3584)])
def test_gate_up(device: str, num_rows: int, intermediate: int, width: int) -> None:
    torch.manual_seed(3)
    weight = make_rows(2 * intermediate, width, device, scale=0.003)
    norm = (torch.rand(width) + 0.5).half().to(device)
    hidden = halves(num_rows, width, device=device, factor=3)
    out = poison(num_rows, intermediate, device=device)
    found = decode.gate_up(hidden, norm, EPS, weight, out=out)
    gate, up = (normed(hidden, norm) @ dense(weight).t()).chunk(2, dim=-1)
    assert error(found, torch.nn.functional.silu(gate) * up) < FUSED_TOLERANCE


@devices
@pytest.mark.parametrize("num_rows", [1, 3, 8])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, width, has_bias",
    [(28, 4, 128, 512, True), (12, 2, 128, 1536, True), (8, 8, 64, 512, False)],
)
def test_qkv_rope(
    device: str, num_rows: int, heads: int, kv_heads: int, head_dim: int, width: int, has_bias: bool
) -> None:
    torch.manual_seed(4)
    num_outputs, places = (heads + 2 * kv_heads) * head_dim, 100
    weight = make_rows(num_outputs, width, device, scale=0.003)
    bias = halves(num_outputs, device=device) if has_bias else None
    norm = (torch.rand(width) + 0.5).half().to(device)
    hidden = halves(num_rows, width, device=device)
    angles = torch.randn(places, head_dim // 2) * 3
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions, slots = (torch.randperm(places)[:num_rows].int() for _ in range(2))
    caches = [torch.zeros(kv_heads, places, head_dim).half().to(device) for _ in range(2)]
    out = poison(num_rows, heads, head_dim, device=device)
    found = decode.qkv_rope(
        hidden, norm, EPS, weight, bias, cos_sin.to(device),
        positions.to(device), slots.to(device), *caches, out=out,
    )  # fmt: skip
    qkv = normed(hidden, norm) @ dense(weight).t()
    qkv = qkv if bias is None else qkv + bias.cpu().double()
    expected = [torch.zeros(kv_heads, places, head_dim).double() for _ in range(2)]
    query = reference.rope_cache(qkv, cos_sin.double(), positions, slots, *expected, heads)
    for one, other in zip((found, *caches), (query, *expected), strict=True):
        assert error(one, other) < FUSED_TOLERANCE


def exact_attention(query: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    longest, repeats = max(lengths), query.shape[1] // keys.shape[0]
    seen = [cache[:, :longest].cpu().double() for cache in (keys, values)]
    key, value = (cache.repeat_interleave(repeats, dim=0) for cache in seen)
    scores = torch.einsum("mhd,htd->mht", query.cpu().double(), key) / query.shape[2] ** 0.5
    hidden = torch.arange(longest) >= torch.tensor(lengths)[:, None, None]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("mht,htd->mhd", weights, value).flatten(1)


@devices
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, places, lengths",
    [
        (28, 4, 128, 1280, [1088]),
        (12, 2, 128, 2048, [1]),
        (12, 2, 128, 2048, [129]),
        (8, 1, 64, 200, [200]),
        (4, 4, 64, 300, [63, 64, 65]),
        (32, 8, 128, 4096, [4096]),
        (14, 2, 128, 700, [1, 17, 128, 256, 511, 512, 513, 700]),
    ],
)
def test_attention(
    device: str, heads: int, kv_heads: int, head_dim: int, places: int, lengths: list[int]
) -> None:
    torch.manual_seed(5)
    query = halves(len(lengths), heads, head_dim, device=device)
    caches = [halves(kv_heads, places, head_dim, device=device) for _ in range(2)]
    for cache in caches:
        cache[:, max(lengths) :] = float("nan")  # never written
    expected = exact_attention(query, *caches, lengths)
    counts = torch.tensor(lengths, dtype=torch.int32, device=device)
    for _ in range(2):  # the second finds the counters as the first left them
        out = poison(len(lengths), heads * head_dim, device=device)
        assert error(decode.attention(query, *caches, counts, out=out), expected) < 1e-3


@devices
def test_a_row_that_sees_nothing_is_zero(device: str) -> None:
    caches = [halves(1, 32, 64, device=device) for _ in range(2)]
    counts = torch.tensor([0, 5], dtype=torch.int32, device=device)
    found = decode.attention(halves(2, 2, 64, device=device), *caches, counts)
    assert not found[0].any() and found[1].any()
    assert not decode.attention(halves(1, 2, 64, device=device), *caches, counts[:1]).any()


@devices
@pytest.mark.parametrize("num_rows, vocabulary, width", [(1, 5003, 1536), (8, 997, 896)])
def test_head_argmax(device: str, num_rows: int, vocabulary: int, width: int) -> None:
    torch.manual_seed(6)
    codes = torch.randint(-128, 128, (vocabulary, width), dtype=torch.int8)
    scales = torch.rand(vocabulary) * 0.01
    norm = (torch.rand(width) + 0.5).half()
    hidden = halves(num_rows, width, device="cpu")
    scores = normed(hidden, norm) @ codes.double().t() * scales.double()
    head = (codes.to(device), scales.to(device))
    there = (hidden.to(device), norm.to(device))
    for _ in range(2):
        token, none = decode.head_argmax(*there, EPS, head, None)
        assert none is None and token.dtype == torch.int32
        chosen = scores.gather(1, token.cpu().long()[:, None])[:, 0]
        assert torch.allclose(chosen, scores.amax(-1), rtol=1e-4)
    allowed = torch.randperm(vocabulary)[:17].int()
    token, found = decode.head_argmax(*there, EPS, head, allowed.to(device))
    assert error(found, scores[:, allowed.long()]) < 1e-4
    chosen = scores.gather(1, token.cpu().long()[:, None])[:, 0]
    assert torch.allclose(chosen, scores[:, allowed.long()].amax(-1), rtol=1e-4)


@devices
def test_of_equal_scores_the_smaller_token_wins(device: str) -> None:
    codes = torch.ones(300, 128, dtype=torch.int8, device=device)
    scales = torch.ones(300, device=device)
    ones = torch.ones(1, 128, device=device).half()
    assert decode.head_argmax(ones, ones[0], EPS, (codes, scales))[0].tolist() == [0]


@devices
def test_rms_norm_and_embedding(device: str) -> None:
    hidden, weight = halves(33, 1536, device=device), halves(1536, device=device)
    found = decode.rms_norm(hidden, weight, EPS, out=poison(33, 1536, device=device))
    assert error(found, normed(hidden, weight)) < TOLERANCE
    tokens = torch.tensor([7, 0, 32], dtype=torch.int32, device=device)
    assert torch.equal(decode.embed(tokens, hidden), hidden[[7, 0, 32]])


def test_more_rows_than_a_kernel_takes_are_refused() -> None:
    from nvila_ros.errors import KernelError
    from nvila_ros.kernels.decode_plan import Device, plan_linear

    with pytest.raises(KernelError, match="9 rows"):
        plan_linear(Device(132, 232448, 233472), 9, 64, 256)


@pytest.mark.parametrize(
    "limits",
    [
        (132, 232448, 233472, (9, 0)),
        (40, 101376, 102400, (8, 9)),
        (108, 166912, 167936, (8, 0)),
        (82, 101376, 102400, (12, 0)),
    ],
)
def test_plans_fit_every_gpu(limits: tuple[int, int, int, tuple[int, int]]) -> None:
    from nvila_ros.kernels import decode_plan

    device = decode_plan.Device(*limits)
    inputs = (256, 1536, 3584, 4096, 8960, 14336, 18944)
    for num_rows, num_inputs, pairs in itertools.product((1, 4, 8), inputs, (20, 768, 18944)):
        plan = decode_plan.plan_linear(device, num_rows, pairs, num_inputs)
        assert plan.shared_bytes <= device.block_bytes
        assert plan.num_chunks * plan.defines["BATCH"] >= num_rows
        assert 32 * plan.num_warps <= plan.defines["MAX_THREADS"]


@pytest.mark.parametrize(
    ("multiprocessor_bytes", "stages"), [(233472, 12), (167936, 8), (102400, 8)]
)
def test_the_head_has_more_in_flight_where_two_blocks_have_room(
    multiprocessor_bytes: int, stages: int
) -> None:
    from nvila_ros.kernels.decode_plan import Device, plan_head

    device = Device(132, multiprocessor_bytes - 1024, multiprocessor_bytes)
    for num_inputs in (1536, 3584):
        plan = plan_head(device, 1, 152064, num_inputs)
        assert plan.defines["HEAD_STAGES"] == stages
        assert stages == 8 or 2 * (plan.shared_bytes + 1024) <= multiprocessor_bytes
    assert plan_head(device, 8, 152064, 1536).defines["HEAD_STAGES"] == 8


def test_plans_that_do_not_fit_say_what_is_needed_and_what_there_is() -> None:
    from nvila_ros.errors import KernelError
    from nvila_ros.kernels.decode_plan import Device, plan_attention, plan_head

    small = Device(10, 8192, 16384)
    with pytest.raises(KernelError, match=r"9 rows of 64 inputs; 1 to 8 rows and a multiple of 64"):
        plan_head(small, 9, 100, 64)
    with pytest.raises(KernelError, match=r"need \d+ bytes of shared memory, a block has 8192"):
        plan_head(small, 1, 100, 64)
    with pytest.raises(KernelError, match=r"heads of 128 needs \d+ bytes.* 8192 on this GPU"):
        plan_attention(small, 1000, 128)

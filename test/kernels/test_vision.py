# SPDX-License-Identifier: Apache-2.0
"""The int8 vision tower: twin against float modules, on a GPU fast path against twin."""

import pytest
import torch
from torch import nn

from nvila_ros.kernels import reference, vision, vision_reference
from nvila_ros.kernels.w8a8 import BoundLinear, W8A8Linear
from nvila_ros.kernels.w8a8_hopper import Epilogue

SIGLIP = {"width": 1152, "inner": 4304, "heads": 16, "side_px": 448, "layers": 2}
SMALL = {"width": 144, "inner": 304, "heads": 2, "side_px": 56, "layers": 2}


class Layer(nn.Module):
    def __init__(self, width, inner, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        for linear in (self.query, self.key, self.value, self.out, self.fc1, self.fc2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, hidden):
        normed = self.norm1(hidden)
        qkv = torch.cat([linear(normed) for linear in (self.query, self.key, self.value)], dim=-1)
        hidden = hidden + self.out(vision_reference.attention(qkv, self.heads))
        inner = nn.functional.gelu(self.fc1(self.norm2(hidden)), approximate="tanh")
        return hidden + self.fc2(inner)

    def packed(self):
        return vision.pack_block(
            norm1=self.norm1, query=self.query, key=self.key, value=self.value, out=self.out,
            norm2=self.norm2, fc1=self.fc1, fc2=self.fc2,
        )  # fmt: skip


class Tower(nn.Module):
    def __init__(self, width, inner, heads, side_px, layers):
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 14, 14)
        self.positions = nn.Parameter(torch.randn((side_px // 14) ** 2, width) / 2)
        self.layers = nn.ModuleList(Layer(width, inner, heads) for _ in range(layers))

    def forward(self, pixels):
        hidden = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def packed(self):
        return vision.pack_tower(
            patch_embedding=self.patches,
            positions=self.positions,
            blocks=[layer.packed() for layer in self.layers],
            num_heads=self.heads,
            eps=1e-6,
        )


def relative_error(outputs, expected):
    return float((outputs.double() - expected.double()).norm() / expected.double().norm())


@torch.no_grad()
def test_the_twin_of_the_tower_is_near_the_float_modules():
    torch.manual_seed(0)
    tower = Tower(**SMALL)
    pixels = torch.rand(2, 3, SMALL["side_px"], SMALL["side_px"]) * 2 - 1
    assert relative_error(vision_reference.encode(tower.packed(), pixels), tower(pixels)) < 0.02


def assert_as_near_as_the_twin(features, twin, exact):
    """Codes move by one where float16 rounds between kernels, and with them later layers' codes.

    So two right towers differ by up to sqrt(2) of what quantization does to either (were all codes
    rounded on their own); float16 alone makes it 0.71 to 0.75 at SigLIP's size, rows at most 0.91.
    No row may differ much more than the others: a wrong tile would.
    """
    assert features.isfinite().all()
    assert relative_error(features, exact) < 1.1 * relative_error(twin, exact) + 1e-3
    assert relative_error(features, twin) < relative_error(twin, exact)
    rows = (features.double() - twin.double()).norm(dim=-1) / twin.double().norm(dim=-1)
    assert rows.max() < 1.5 * relative_error(twin, exact)


@pytest.mark.parametrize("inner_block", [None, 192])
@torch.no_grad()
def test_float16_between_kernels_moves_codes_and_nothing_else(inner_block):
    torch.manual_seed(0)
    tower = Tower(**SMALL)
    weights = tower.packed()
    pixels = torch.rand(2, 3, SMALL["side_px"], SMALL["side_px"]) * 2 - 1
    twin = vision_reference.encode(weights, pixels, inner_block)
    rounded = vision_reference.encode(weights, pixels, inner_block, dtype=torch.float16)
    exact = tower(pixels)
    assert_as_near_as_the_twin(rounded, twin, exact)
    assert relative_error(rounded, twin) > 0.2 * relative_error(twin, exact)  # why 1e-3 won't do


def test_linears_are_packed_in_turn_quantized_or_not():
    torch.manual_seed(0)
    first, second = nn.Linear(32, 8), nn.Linear(32, 16, bias=False)
    packed = vision.pack_linear(first, W8A8Linear.from_linear(second))
    assert packed.weight.shape == (24, 32) and packed.bias.dtype == torch.float16
    dense = packed.weight.float() * packed.weight_scale[:, None]
    expected = torch.cat([first.weight, second.weight])
    assert relative_error(dense, expected) < 0.01
    torch.testing.assert_close(packed.bias[:8].float(), first.bias, rtol=1e-3, atol=1e-4)
    assert not packed.bias[8:].any()


def test_without_a_gpu_the_encoder_says_what_it_needs():
    weights = Tower(**SMALL).packed()
    assert not vision.is_available(torch.device("cpu"))
    with pytest.raises(vision.KernelError, match="NVIDIA GPU"):
        vision.VisionEncoder(weights, max_frames=1)


gpu = pytest.mark.gpu


@pytest.fixture(scope="module")
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


# M of one frame, of eight, odd ones; K with a tail, K that ends inside a 32; odd numbers of tiles.
GPU_SHAPES = [
    (8192, 1152, 3456), (8192, 4304, 1152), (8192, 1152, 4304), (1024, 1152, 1152),
    (1024, 4304, 1152), (1024, 1152, 3456), (1024, 1152, 4304), (1, 4304, 1152), (17, 1168, 200),
    (300, 4304, 72), (5, 40, 33), (129, 16, 8),
]  # fmt: skip


@gpu
@pytest.mark.parametrize("m, k, n", GPU_SHAPES)
@pytest.mark.parametrize("gelu, residual", [(False, False), (True, False), (False, True)])
def test_the_gemm_and_its_epilogue(device, m, k, n, gelu, residual):
    torch.manual_seed(m + k + n)
    codes = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    scales, weight_scale = torch.rand(m, device=device) / 1e3, torch.rand(n, device=device) / 100
    bias = torch.randn(n, device=device).half()
    added = torch.randn(m, n, device=device).half() if residual else None
    poisoned = torch.full((m + 8, n), float("nan"), dtype=torch.float16, device=device)
    epilogue = Epilogue(gelu=gelu, residual=residual)
    bound = BoundLinear(codes, weight, weight_scale, bias, epilogue)
    bound.launch(scales, poisoned[:m], added)
    expected = codes.double() @ weight.double().t() * scales.double()[:, None] * weight_scale
    expected = expected + bias
    if gelu:
        expected = nn.functional.gelu(expected, approximate="tanh")
    if added is not None:
        expected = expected + added
    assert poisoned[m:].isnan().all(), "wrote past the end"
    # Integers are exact: what is left is float16's rounding, of the product and after the residual
    # again (so that a small difference of two is off by their size), and GELU's approximate tanh.
    assert relative_error(poisoned[:m], expected) < 5e-4
    size = expected.abs() + (added.abs() if added is not None else 0) + expected.abs().mean() / 20
    assert ((poisoned[:m].double() - expected).abs() / size).max() < (2e-2 if gelu else 3e-3)


@gpu
@pytest.mark.parametrize(
    "rows, width", [(1, 1152), (17, 1152), (4097, 1152), (1024, 4304), (3, 144), (5, 20)]
)
@pytest.mark.parametrize("kind", ["norm", "plain", "gelu"])
def test_rows_are_quantized_as_the_twin_does(device, rows, width, kind):
    from nvila_ros.kernels import vision_rows

    torch.manual_seed(rows)
    inputs = (torch.randn(rows, width, device=device) * 3).half()
    weight, bias = torch.randn(2, width, device=device).half()
    codes = torch.full((rows, width), -128, dtype=torch.int8, device=device)
    scales = torch.full((rows,), float("nan"), device=device)
    if kind == "norm":
        vision_rows.layer_norm_quantize(inputs, weight, bias, 1e-6, codes, scales)
        expected, expected_scales = reference.layer_norm_quantize(inputs, weight, bias, 1e-6)
    else:
        vision_rows.quantize(inputs, codes, scales, gelu=kind == "gelu")
        twin = reference.gelu_quantize if kind == "gelu" else reference.quantize_per_token
        expected, expected_scales = twin(inputs)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-3, atol=0)
    off = (codes.int() - expected.int()).abs()
    assert off.max() <= 1 and off.float().mean() < (0.02 if kind == "gelu" else 0.002)


@gpu
@pytest.mark.parametrize("rows, width", [(1, 1152), (4097, 1152), (8192, 1152), (1024, 4304)])
def test_rows_from_the_end_are_the_same_rows(device, rows, width):
    from nvila_ros.kernels import vision_rows

    torch.manual_seed(rows)
    inputs = (torch.randn(rows, width, device=device) * 3).half()
    weight, bias = torch.randn(2, width, device=device).half()
    found = []
    for from_end in (False, True):
        for is_norm in (False, True):
            codes = torch.full((rows, width), -128, dtype=torch.int8, device=device)
            scales = torch.full((rows,), float("nan"), device=device)
            if is_norm:
                arguments = (inputs, weight, bias, 1e-6, codes, scales)
                vision_rows.layer_norm_quantize(*arguments, from_end=from_end)
            else:
                vision_rows.quantize(inputs, codes, scales, from_end=from_end)
            found += [codes, scales]
    for one, other in zip(found[:4], found[4:], strict=True):
        assert torch.equal(one, other)


@gpu
@pytest.mark.parametrize("m, k, n", [(8192, 4304, 1152), (1024, 1152, 3456), (300, 1168, 200)])
def test_a_product_from_the_end_is_the_same_product(device, m, k, n):
    torch.manual_seed(m)
    codes = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    scales, weight_scale = torch.rand(m, device=device) / 1e3, torch.rand(n, device=device) / 100
    bias = torch.randn(n, device=device).half()
    out = torch.full((2, m, n), float("nan"), device=device).half()
    for index, from_end in enumerate((False, True)):
        epilogue = Epilogue(from_end=from_end)
        BoundLinear(codes, weight, weight_scale, bias, epilogue).launch(scales, out[index])
    assert torch.equal(out[0], out[1])


@gpu
def test_a_broken_row_is_not_made_whole(device):
    layer = W8A8Linear.from_linear(nn.Linear(1152, 64)).to(device)
    inputs = torch.ones(3, 1152, dtype=torch.float16, device=device)
    inputs[0, 5], inputs[2, 7] = float("nan"), float("inf")
    outputs = layer(inputs)
    assert not outputs[0].isfinite().any() and outputs[1].isfinite().all()
    assert not outputs[2].isfinite().any()


@gpu
@pytest.mark.parametrize(
    "frames, tokens, heads", [(8, 1024, 16), (1, 128, 1), (2, 729, 16), (1, 100, 3)]
)
def test_attention_stays_within_a_frame(device, frames, tokens, heads):
    from nvila_ros.kernels.vision_attention import FrameAttention

    torch.manual_seed(tokens)
    qkv = (2 * torch.randn(frames, tokens, 3 * heads * 72, device=device)).half()
    out = torch.full((frames, tokens, heads * 72), float("nan"), device=device).half()
    FrameAttention(qkv, out, heads).launch()
    expected = torch.cat([vision_reference.attention(frame[None].double(), heads) for frame in qkv])
    assert relative_error(out, expected) < 1e-3


@gpu
@torch.no_grad()
@pytest.mark.parametrize("size", [SIGLIP, SMALL], ids=["siglip", "small"])
def test_the_encoder_is_its_twin_also_when_replayed_from_a_graph(device, size):
    torch.manual_seed(0)
    tower = Tower(**size).to(device)
    weights = tower.packed()
    encoder = vision.VisionEncoder(weights, max_frames=3)
    pixels = (torch.rand(3, 3, size["side_px"], size["side_px"], device=device) * 2 - 1).half()
    exact = tower(pixels.float())
    for frames in (3, 2, 1):  # which may have other tiles, scales and orders of adding up
        twin = vision_reference.encode(weights, pixels[:frames], encoder.inner_block(frames))
        assert_as_near_as_the_twin(encoder.encode(pixels[:frames]), twin, exact[:frames])
    features = encoder.encode(pixels)
    still = pixels.clone()
    out = torch.empty_like(features)
    encoder.encode(still, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        encoder.encode(still, out)
    still.copy_(pixels.flip(0))
    graph.replay()
    assert torch.equal(out, features.flip(0))

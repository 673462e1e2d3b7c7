# SPDX-License-Identifier: Apache-2.0
"""The layout of heads: every value in its place, in C++ as in Python, as tensor cores read it."""

import ctypes
import shutil
import subprocess

import pytest
import torch

from nvila_ros.kernels import vision_heads, vision_reference
from nvila_ros.kernels.compiler import SOURCES

TOKENS = [1024, 729, 100, 16]


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("is_value", [False, True])
def test_every_part_has_a_place_of_its_own_inside_the_head(tokens, is_value):
    offsets = vision_heads.part_offsets(tokens, is_value=is_value).flatten()
    assert len(offsets.unique()) == tokens * 9
    assert not (offsets % 16).any()
    assert offsets.max() + 16 <= vision_heads.num_bytes(tokens)


@pytest.mark.parametrize("tokens", TOKENS)
def test_the_source_has_the_same_layout(tokens, tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    source = tmp_path / "layout.cpp"
    source.write_text(
        "#define __host__\n#define __device__\n#define __forceinline__ inline\n"
        '#include "vision_heads.cuh"\n'
        'extern "C" int offset(int token, int part, int blocks, int is_value) {\n'
        "    return heads::vector_offset(token, part, blocks, is_value);\n}\n"
        'extern "C" int size(int tokens) {\n'
        "    return heads::head_bytes(heads::blocks_of(tokens));\n}\n"
    )
    library = tmp_path / "layout.so"
    command = [compiler, "-shared", "-fPIC", f"-I{SOURCES}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    layout = ctypes.CDLL(str(library))
    blocks = vision_heads.num_blocks(tokens)
    assert layout.size(tokens) == vision_heads.num_bytes(tokens)
    for is_value in (False, True):
        expected = vision_heads.part_offsets(tokens, is_value=is_value)
        found = [[layout.offset(t, p, blocks, is_value) for p in range(9)] for t in range(tokens)]
        assert found == expected.tolist()


def read(memory, start, leading, row, column, swizzle):
    """What a wgmma descriptor addresses, by PTX's description of swizzled layouts.

    Rows are `swizzle` bytes, without gaps between them; the columns that follow those of
    a row begin `leading` bytes further; address bits from 4 on are XORed with those from 7 on.
    """
    values = swizzle // 2  # of a row
    byte = start + column // values * leading + row * swizzle + column % values * 2
    mask = swizzle // 16 - 1
    return memory[(byte ^ ((byte >> 7 & mask) << 4)) // 2]


@pytest.mark.parametrize("block", [0, 3, 7])
def test_tensor_cores_find_keys_and_values_where_attention_copies_them(block):
    torch.manual_seed(block)
    qkv = torch.randn(1, 1024, 3 * 72).half()
    query, key, value = vision_heads.from_rows(qkv, 1)[0]
    high, low = vision_heads.HIGH_BYTES // 2, vision_heads.LOW_BYTES // 2
    tokens = slice(block * 128, block * 128 + 128)
    for head, columns in ((query, slice(0, 72)), (key, slice(72, 144))):
        copies = (head[block * high :][:high], head[8 * high + block * low :][:low])
        stage = torch.cat(copies)
        expected = torch.nn.functional.pad(qkv[0, tokens, columns], (0, 8))  # steps of 16 columns
        for row in range(0, 128, 3):
            found = [read(stage, 0, 0, row, column, 128) for column in range(64)]
            found += [read(stage, 2 * high, 0, row, column, 32) for column in range(16)]
            assert found == expected[row].tolist()
    # A ring's stage of values, something else, and the head's low columns behind it.
    gap = 3 * high
    memory = torch.cat([value[block * high :][:high], torch.full((gap,), 9.0), value[8 * high :]])
    leading = (high + gap) * 2 + block * 16
    for row in range(0, 128, 3):
        found = [read(memory, 0, leading, row, column, 128) for column in range(72)]
        assert found == qkv[0, tokens, 144:][row].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "frames, tokens, heads", [(8, 1024, 16), (1, 1024, 16), (1, 128, 1), (2, 729, 16), (1, 100, 3)]
)
def test_attention_over_heads_stays_within_a_frame(frames, tokens, heads):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    from nvila_ros.kernels.vision_attention import HeadAttention

    torch.manual_seed(tokens)
    qkv = (2 * torch.randn(frames, tokens, 3 * heads * 72, device="cuda")).half()
    out = torch.full((frames + 1, tokens, heads * 72), float("nan"), device="cuda").half()
    HeadAttention(vision_heads.from_rows(qkv, heads), out[:frames]).launch()
    expected = torch.cat([vision_reference.attention(frame[None].double(), heads) for frame in qkv])
    error = (out[:frames].double() - expected).norm() / expected.norm()
    assert error < 1e-3
    assert out[frames:].isnan().all(), "wrote past the end"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "frames, tokens, heads",
    [(8, 1024, 16), (1, 1024, 16), (3, 729, 16), (21, 100, 8), (2, 16, 2), (40, 64, 3)],
)
def test_the_product_puts_heads_apart(frames, tokens, heads):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    from nvila_ros.kernels.w8a8 import BoundLinear
    from nvila_ros.kernels.w8a8_hopper import Epilogue

    torch.manual_seed(tokens)
    device = torch.device("cuda")
    m, n, k = frames * tokens, 3 * heads * 72, 144
    codes = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    scales, weight_scale = torch.rand(m, device=device) / 1e3, torch.rand(n, device=device) / 100
    bias = torch.randn(n, device=device).half()
    out = vision_heads.empty(frames + 1, tokens, heads, device)
    bound = BoundLinear(codes, weight, weight_scale, bias, Epilogue(head_tokens=tokens))
    bound.launch(scales, out[:frames])
    rows = torch.empty(m, n, dtype=torch.float16, device=device)
    BoundLinear(codes, weight, weight_scale, bias).launch(scales, rows)
    expected = vision_heads.from_rows(rows.view(frames, tokens, n), heads)
    assert torch.equal(out[:frames], expected)  # padding stays zero, too
    assert not out[frames:].any(), "wrote past the end"

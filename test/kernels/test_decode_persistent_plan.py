# SPDX-License-Identifier: Apache-2.0
"""How the decode step of one launch is cut to a GPU."""

import pytest
import torch

from nvila_ros.kernels.decode_persistent_plan import (
    PAIRED,
    PHASES,
    QKV,
    RELEASED,
    Cut,
    Sizes,
    plan,
)
from nvila_ros.kernels.decode_plan import H100, Device


def sizes_of(*numbers: int) -> Sizes:
    names = ("hidden", "intermediate", "num_heads", "num_kv_heads", "head_dim", "num_layers")
    return Sizes(**dict(zip(names, numbers, strict=True)))


QWEN2_7B, QWEN2_15B = RELEASED
LLAMA3_8B = sizes_of(4096, 14336, 32, 8, 128, 32)
SMALL = sizes_of(256, 512, 4, 2, 64, 2)
WIDE_HEADS = sizes_of(512, 768, 6, 3, 128, 1)  # blocks without keys: 3 heads over 16 blocks


@pytest.mark.parametrize("sizes", [QWEN2_7B, QWEN2_15B, LLAMA3_8B])
def test_released_decoders_fit_one_launch_on_an_h100(sizes: Sizes) -> None:
    cut = plan(sizes, H100)
    assert cut is not None
    assert cut.stages >= 4 and cut.shared_bytes <= H100.block_bytes


def test_what_does_not_fit_is_left_to_the_kernels() -> None:
    assert plan(sizes_of(896, 4864, 14, 2, 64, 24), H100) is None  # 896 is no multiple of 256
    assert plan(QWEN2_7B, Device(132, 101376, 102400)) is None  # shared memory of a GeForce


CUTS = [
    Cut(QWEN2_7B, 132, 12, 6), Cut(QWEN2_15B, 132, 12, 6), Cut(LLAMA3_8B, 114, 16, 3),
    Cut(SMALL, 16, 4, 2), Cut(WIDE_HEADS, 7, 12, 2),
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_row_of_a_matrix_is_somebodys_and_only_once(cut: Cut, phase: int) -> None:
    rows = cut.rows(phase)
    assert rows.shape == (cut.num_blocks, cut.most_tiles(phase), 16)
    num_rows = 4 * cut.sizes.num_quads(phase) * (2 if phase in PAIRED else 1)
    found = rows[rows >= 0]
    assert sorted(found.tolist()) == list(range(num_rows))
    if phase in PAIRED:  # lane rows n and n + 8 are the two of a pair
        first, second = rows[..., :8], rows[..., 8:]
        assert ((second - first)[first >= 0] == cut.sizes.pair_step(phase)).all()
    if phase == QKV:
        column = rows[..., :8][rows[..., :8] >= 0] % cut.sizes.head_dim
        assert (column < cut.sizes.head_dim // 2).all()


@pytest.mark.parametrize("phase", PHASES)
def test_a_units_scales_stand_together(phase: int) -> None:
    cut = Cut(WIDE_HEADS, 16, 12, 2)
    num_groups = cut.sizes.num_inputs(phase) // 128
    rows = cut.rows(phase)
    numbers = torch.arange((int(rows.max()) + 1) * num_groups).view(-1, num_groups, 1)
    packed = cut.pack_scales(phase, torch.cat((numbers, -numbers), dim=2))
    blocks, tiles, pieces = cut.scale_shapes[phase]
    assert packed.shape == (blocks, tiles, pieces, 16, 2, 2)
    for block, tile, piece, output, group in ((0, 0, 0, 0, 0), (3, 0, 1, 9, 1), (7, 0, 1, 3, 0)):
        row = int(rows[block, tile, output])
        expected = row * num_groups + 2 * piece + group
        assert row < 0 or packed[block, tile, piece, output, group].tolist() == [
            expected,
            -expected,
        ]

# SPDX-License-Identifier: Apache-2.0
"""How all layers of a decode step are cut for one launch; the same counts as decode_persistent.cuh.

A quad is four outputs, or four pairs of outputs where a matrix has pairs (qkv, gate and up); a
block's share is whole quads. A tile is up to 16 outputs of a share, a piece 256 inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.kernels.decode_plan import Device
from nvila_ros.kernels.packing import ROWS_GROUP

OLDEST_CAPABILITY = (9, 0)  # the bulk copy engine
WARPS = (12, 16)  # of a block: 168 or 128 registers a thread
MAX_STAGES, FEWEST_STAGES = 6, 2  # units of a warp in flight
PIECE_INPUTS = 2 * ROWS_GROUP
TILE = 16
CODE_BYTES = TILE * PIECE_INPUTS // 2
SCALE_BYTES = TILE * 2 * 4
LOOKING_WARPS, TILE_KEYS = 2, 32
LAYER_BYTES = 40  # of a layer's pointers
QKV, OUTPUT, GATE_UP, DOWN = PHASES = range(4)
PAIRED = (QKV, GATE_UP)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The decoder. All but the number of layers of one layer."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int

    @property
    def is_supported(self) -> bool:
        """Whole pieces everywhere, and at most 16 query heads to a key-value head."""
        inputs = (self.hidden, self.intermediate, self.num_heads * self.head_dim)
        repeats = self.num_heads // self.num_kv_heads
        whole = not any(count % PIECE_INPUTS for count in inputs)
        return whole and self.head_dim in (64, 128) and repeats <= 16

    def num_inputs(self, phase: int) -> int:
        queries = self.num_heads * self.head_dim
        return (self.hidden, queries, self.hidden, self.intermediate)[phase]

    def num_quads(self, phase: int) -> int:
        """Of the whole matrix."""
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return (heads // 8, self.hidden // 4, self.intermediate // 4, self.hidden // 4)[phase]

    def num_pairs(self, phase: int) -> int:
        """Of outputs, as the linears of one launch each count them."""
        return self.num_quads(phase) * (4 if phase in PAIRED else 2)

    def pair_step(self, phase: int) -> int:
        """Rows between the two outputs of a pair."""
        return {QKV: self.head_dim // 2, GATE_UP: self.intermediate}[phase]

    @property
    def num_words(self) -> int:
        """64-bit words through which blocks send values: q | k | v, mixed, hidden twice, inner."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return (heads * self.head_dim + 2 * self.hidden + self.intermediate) // 4


RELEASED = (  # the language models of NVILA-8B and NVILA-Lite-2B
    Sizes(
        hidden=3584, intermediate=18944, num_heads=28, num_kv_heads=4, head_dim=128, num_layers=28
    ),
    Sizes(
        hidden=1536, intermediate=8960, num_heads=12, num_kv_heads=2, head_dim=128, num_layers=28
    ),
)


@dataclass(frozen=True)
class Cut:
    """Sizes over the blocks and warps of a launch."""

    sizes: Sizes
    num_blocks: int
    num_warps: int
    stages: int
    has_head: bool = False  # whether the launch goes on to the next token
    asks_first: bool = False  # for the first layer's small inputs, before the weights

    def pieces(self, phase: int) -> int:
        return self.sizes.num_inputs(phase) // PIECE_INPUTS

    def most_quads(self, phase: int) -> int:
        """Of the busiest block; pairs come in whole tiles, two quads."""
        step = 2 if phase in PAIRED else 1
        return -(-self.sizes.num_quads(phase) // step // self.num_blocks) * step

    def most_tiles(self, phase: int) -> int:
        quads = self.most_quads(phase)
        return quads // 2 if phase in PAIRED else -(-quads * 4 // TILE)

    @property
    def height(self) -> int:
        """Outputs of a tile of the output and down projections."""
        return -(-self.most_quads(OUTPUT) * 4 // self.most_tiles(OUTPUT))

    def box(self, phase: int) -> tuple[int, int, int, int]:
        """What the copy engine brings at once: of heads, halves, rows and words."""
        words = PIECE_INPUTS // 8
        return (1, 2, TILE // 2, words) if phase in PAIRED else (1, 1, self.height, words)

    def view(self, phase: int, codes: Tensor) -> Tensor:
        """(N, K / 8) words -> heads, halves, rows, words: outputs of a pair are a half apart."""
        if phase not in PAIRED:
            return codes[None, None]
        return codes.unflatten(0, (-1, 2, self.sizes.pair_step(phase)))

    @property
    def head_box(self) -> tuple[int, int, int, int]:
        """The same of the head: 16 tokens, 128 inputs of a byte."""
        return (1, 1, TILE, ROWS_GROUP // 4)

    @property
    def max_splits(self) -> int:
        return self.num_blocks // self.sizes.num_kv_heads * LOOKING_WARPS

    @property
    def scale_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(blocks, tiles, pieces) of each phase."""
        return tuple((self.num_blocks, self.most_tiles(p), self.pieces(p)) for p in PHASES)

    @property
    def layer_scale_bytes(self) -> int:
        return sum(a * b * c for a, b, c in self.scale_shapes) * SCALE_BYTES

    @property
    def shared_bytes(self) -> int:
        """As decode_persistent.cuh divides it, and room to begin at a multiple of 1024."""
        sizes, slots = self.sizes, self.num_warps * self.stages
        units = sum(-(-self.most_tiles(p) * self.pieces(p) // self.num_warps) for p in PHASES)
        sums = max(self.pieces(p) * (self.most_tiles(p) * TILE + 4) for p in PHASES)
        queries = sizes.num_heads * sizes.head_dim
        most_inputs = max(sizes.intermediate, queries)
        parts = (
            slots * (CODE_BYTES + SCALE_BYTES), slots * 8, self.num_warps * (units + 1) * 16,
            sums * 4, most_inputs // ROWS_GROUP * 8, self.most_quads(OUTPUT) * 16, 128,
            LOOKING_WARPS * 8, sizes.num_layers * LAYER_BYTES,
        )  # fmt: skip
        rows = sum(-(-part // 16) * 16 for part in parts)
        keys = -(-(rows + 2 * max(sizes.hidden, queries)) // 1024) * 1024
        end = max(rows + 2 * most_inputs, keys + LOOKING_WARPS * TILE_KEYS * 4 * sizes.head_dim)
        return end + 1024

    @property
    def defines(self) -> Mapping[str, int]:
        """What decode_persistent.cu is compiled with."""
        sizes = self.sizes
        return {
            "HIDDEN": sizes.hidden,
            "INTERMEDIATE": sizes.intermediate,
            "NUM_HEADS": sizes.num_heads,
            "NUM_KV_HEADS": sizes.num_kv_heads,
            "HEAD_DIM": sizes.head_dim,
            "LAYERS": sizes.num_layers,
            "THREADS": 32 * self.num_warps,
            "STAGES": self.stages,
            "BLOCKS": self.num_blocks,
            "SHARED_BYTES": self.shared_bytes,
            "HAS_HEAD": int(self.has_head),
            "ASKS_FIRST": int(self.asks_first),
        }

    def first_quads(self, phase: int) -> Tensor:
        """(blocks + 1,) where each block's share begins, and where the last one ends."""
        step = 2 if phase in PAIRED else 1
        parts = self.sizes.num_quads(phase) // step
        return torch.arange(self.num_blocks + 1) * parts // self.num_blocks * step

    def rows(self, phase: int) -> Tensor:
        """(blocks, tiles, 16) row of the matrix; -1 where a tile has none of the share."""
        bounds = self.first_quads(phase) * 4
        first, end = bounds[:-1, None, None], bounds[1:, None, None]
        tile = torch.arange(self.most_tiles(phase))[None, :, None]
        output = torch.arange(TILE)[None, None, :]
        if phase not in PAIRED:
            row = first + tile * self.height + output
            return torch.where((output < self.height) & (row < end), row, -1)
        pair = first + tile * 8 + output % 8
        half = self.sizes.head_dim // 2
        row = pair + (pair // half * half if phase == QKV else 0)
        row = row + output // 8 * self.sizes.pair_step(phase)
        return torch.where(pair < end, row, -1)

    def pack_scales(self, phase: int, scale_zero: Tensor) -> Tensor:
        """(N, G, 2) halves -> (blocks, tiles, pieces, 16, 2, 2): what a unit needs, together."""
        rows = self.rows(phase).to(scale_zero.device)
        pieces = scale_zero[rows.clamp(min=0)].unflatten(3, (self.pieces(phase), 2))
        return pieces.transpose(2, 3).contiguous()


@functools.cache
def plan(sizes: Sizes, device: Device) -> Cut | None:
    """None where the decoder does not fit this GPU."""
    if not sizes.is_supported or sizes.num_kv_heads > device.num_multiprocessors:
        return None
    for num_warps in WARPS:
        for stages in range(MAX_STAGES, FEWEST_STAGES - 1, -1):
            cut = Cut(sizes, device.num_multiprocessors, num_warps, stages)
            fits = cut.shared_bytes + 1024 <= device.block_bytes
            if fits and max(map(cut.most_quads, (QKV, OUTPUT))) <= num_warps:
                return cut
    return None

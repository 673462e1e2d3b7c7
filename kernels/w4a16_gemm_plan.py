# SPDX-License-Identifier: Apache-2.0
"""Which tile a W4A16 product of a given size runs on, and how its work is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

GROUP = 128
ALIGNMENT = 1024  # the ring of stages begins at such an address
STAGED_OUTPUT_BYTES = 2 * 2 * 32 * 72 * 2
STATIC_SHARED_BYTES = 256  # of `w4a16_mma.cu`, beside the ring
MOST_SHARED_BYTES = 227 * 1024
MOST_PARTIAL_VALUES = 2 * 160 * 128  # floats that one block of `w4a16_hopper.cu` leaves for another


def ceil_div(value: int, step: int) -> int:
    """How many steps cover the value."""
    return -(-value // step)


@dataclass(frozen=True, kw_only=True)
class HopperPlan:
    """One tile shape of `w4a16_hopper.cu`."""

    tile_tokens: int  # a multiple of 32 up to 256
    height: int  # 64-row products per warpgroup: a tile has 128 or 256 weight rows
    stages: int
    cluster: int  # blocks that share the activations: 1 or 2
    unit: int  # k16 steps that are dequantized together
    is_gate_up: bool
    num_tiles: int  # of one cluster: 128 height cluster rows x tile_tokens

    @property
    def partial_values(self) -> int:
        """Floats that one block may leave for another, at most MOST_PARTIAL_VALUES."""
        return self.height * self.tile_tokens * 128

    @property
    def shared_bytes(self) -> int:
        """Ring, staged output, barriers."""
        return (
            ALIGNMENT
            + self.stages * stage_bytes(self.tile_tokens, self.height)
            + STAGED_OUTPUT_BYTES
            + 16 * self.stages
        )

    def defines(self) -> dict[str, int]:
        """For `build.load`."""
        return {
            "TILE_TOKENS": self.tile_tokens,
            "HEIGHT": self.height,
            "STAGES": self.stages,
            "GATE_UP": int(self.is_gate_up),
            "CLUSTER": self.cluster,
            "UNIT": self.unit,
        }


def stage_bytes(tile_tokens: int, height: int) -> int:
    """One group of K: activations in fp16, weights in int4."""
    return tile_tokens * GROUP * 2 + 128 * height * GROUP // 2


@lru_cache(maxsize=4096)
def hopper_plan(
    num_tokens: int,
    num_rows: int,
    num_groups: int,
    is_gate_up: bool,
    tile: tuple[int, int, int, int] | None = None,
) -> HopperPlan:
    """The tile that pads the tokens least, or `tile`: tokens, height, cluster, unit."""
    tile_tokens, height, cluster, unit = tile or _hopper_tile(num_tokens)
    ring = MOST_SHARED_BYTES - ALIGNMENT - STAGED_OUTPUT_BYTES - 256
    return HopperPlan(
        tile_tokens=tile_tokens,
        height=height,
        stages=min(8, ring // stage_bytes(tile_tokens, height)),
        cluster=cluster,
        unit=unit,
        is_gate_up=is_gate_up,
        num_tiles=ceil_div(num_rows, 128 * height * cluster) * ceil_div(num_tokens, tile_tokens),
    )


def _hopper_tile(num_tokens: int) -> tuple[int, int, int, int]:
    if num_tokens <= 128:
        return ceil_div(num_tokens, 32) * 32, 1, 1, 4
    return min(
        ((224, 1, 2, 2), (192, 1, 2, 2)),
        key=lambda tile: ceil_div(num_tokens, tile[0]) * tile[0],
    )


@dataclass(frozen=True, kw_only=True)
class MmaPlan:
    """One tile shape of `w4a16_mma.cu`: 128 weight rows x `tile_tokens`, K in `splits` parts."""

    tile_tokens: int
    stages: int
    splits: int
    is_gate_up: bool
    grid: tuple[int, int, int]

    @property
    def partial_values(self) -> int:
        """Floats of all parts of a split product."""
        x, y, z = self.grid
        return x * y * z * 128 * self.tile_tokens if self.splits > 1 else 1

    @property
    def num_threads(self) -> int:
        """A warp for each 32 rows x 32 tokens, or 16 x 32."""
        return 512 if self.tile_tokens == 128 else 256

    @property
    def shared_bytes(self) -> int:
        """Ring of 64 inputs a stage; the output of a tile is staged in the same place."""
        return self.stages * (self.tile_tokens * 128 + 128 * 32) + STATIC_SHARED_BYTES

    def defines(self, *, is_half_sum: bool) -> dict[str, int]:
        """For `build.load`."""
        return {
            "TILE_TOKENS": self.tile_tokens,
            "STAGES": self.stages,
            "HALF_SUM": int(is_half_sum),
            "GATE_UP": int(self.is_gate_up),
        }


@lru_cache(maxsize=4096)
def mma_plan(
    num_tokens: int,
    num_rows: int,
    num_groups: int,
    num_multiprocessors: int,
    is_gate_up: bool = False,
) -> MmaPlan:
    """Small tiles for few tokens; K is split while that fills more multiprocessors."""
    tile_tokens = next((size for size in (32, 64) if num_tokens <= size), 128)
    across, along = ceil_div(num_rows, 128), ceil_div(num_tokens, tile_tokens)
    splits = max(1, min(num_groups // 4, num_multiprocessors // (across * along), 16))
    return MmaPlan(
        tile_tokens=tile_tokens,
        stages=4,
        splits=splits,
        is_gate_up=is_gate_up,
        grid=(along, across, splits),
    )

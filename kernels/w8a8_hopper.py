# SPDX-License-Identifier: Apache-2.0
"""Launches the Hopper int8 GEMM: tile shapes by problem size, copy-engine maps, grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nvila_ros.kernels import build, driver

SOURCE = "w8a8_hopper.cu"
TILE_K = 128
BLOCK_K = 192  # columns that share a scale in a row of codes, where there are several
THREADS = 384


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums."""

    gelu: bool = False
    residual: bool = False
    codes_out: bool = False  # int8 with a scale per row and BLOCK_K columns, instead of float16
    block_scales: bool = False  # the inputs have such scales
    head_tokens: int = 0  # rows of a frame where q|k|v go head by head (`vision_heads`); 0: rows
    from_end: bool = False  # the last rows come first


@dataclass(frozen=True)
class Tiling:
    """How the output is cut; see the source for what each means."""

    tile_m: int
    tile_n: int
    stages: int
    cluster_m: int = 1
    cluster_n: int = 1
    pingpong: bool = False

    @property
    def cluster(self) -> int:
        """Blocks in a cluster."""
        return self.cluster_m * self.cluster_n

    @property
    def shared_bytes(self) -> int:
        """The ring, what lies behind it, and room to align."""
        ring = self.stages * (self.tile_m + self.tile_n) * TILE_K
        return ring + 2 * self.tile_n * 8 + 2 * self.stages * 8 + 1024

    def num_tiles(self, m: int, n: int) -> int:
        """Tiles of whole clusters that cover (m, n)."""
        return -(-m // (self.tile_m * self.cluster_m)) * -(-n // (self.tile_n * self.cluster_n))

    def defines(self, epilogue: Epilogue) -> dict[str, int]:
        """The source's defines."""
        return {
            "TILE_M": self.tile_m,
            "TILE_N": self.tile_n,
            "STAGES": self.stages,
            "CLUSTER_M": self.cluster_m,
            "CLUSTER_N": self.cluster_n,
            "PINGPONG": int(self.pingpong),
            "GELU": int(epilogue.gelu),
            "RESIDUAL": int(epilogue.residual),
            "CODES_OUT": int(epilogue.codes_out),
            "BLOCK_SCALES": int(epilogue.block_scales),
            "TOKENS": epilogue.head_tokens,
            "FROM_END": int(epilogue.from_end),
        }


FEW_ROWS = 1024  # of one frame: here waves and latency decide, not the rate
LONG_K = 2048  # with few rows, blocks of a cluster share the weights of so long a K


def choose_tiling(m: int, k: int, epilogue: Epilogue) -> Tiling:
    """The tiling for m rows of k inputs, measured on an H100 (1,024 and 8,192 rows)."""
    if epilogue.block_scales:
        return Tiling(128, 192, 5, 2) if m > 2 * FEW_ROWS else Tiling(128, 80, 6, 1, 2)
    if epilogue.codes_out:
        return Tiling(128, BLOCK_K, 5, 2, pingpong=True)
    if m > 2 * FEW_ROWS:
        return Tiling(128, 192, 5, 2) if epilogue.residual else Tiling(128, 192, 5, 2, 1, True)
    if epilogue.residual:
        return Tiling(128, 96, 7, 4) if k > LONG_K else Tiling(128, 96, 7)
    return Tiling(256, 144, 4, 2) if epilogue.gelu else Tiling(128, 224, 4, 2)


class HopperGemm:
    """One product with its buffers bound: maps are made once, `launch` only queues."""

    def __init__(
        self,
        codes: Tensor,
        weight: Tensor,
        tiling: Tiling,
        epilogue: Epilogue,
        extra_defines: Mapping[str, object] | None = None,
    ) -> None:
        """codes (M, K) int8, weight (N, K) int8; K a multiple of 16, N of 8."""
        self.m, self.k = codes.shape
        self.n = weight.shape[0]
        assert self.k % 16 == 0 and self.n % 8 == 0, (self.m, self.n, self.k)
        self.tiling = tiling
        self.epilogue = epilogue
        defines = {**tiling.defines(epilogue), **(extra_defines or {})}
        self._kernel = build.load(SOURCE, defines, codes.device.index).kernel("w8a8_gemm")
        self._codes = driver.tensor_map(codes, (tiling.tile_m // tiling.cluster_n, TILE_K), 128)
        box = (tiling.tile_n // tiling.cluster_m, TILE_K)
        self._weight = driver.tensor_map(weight, box, 128)
        fitting = self._kernel.max_clusters(tiling.cluster, THREADS, tiling.shared_bytes)
        clusters = min(tiling.num_tiles(self.m, self.n), fitting)
        self._blocks = clusters * tiling.cluster

    def launch(
        self,
        scales: Tensor,
        weight_scale: Tensor,
        bias: Tensor,
        out: Tensor,
        residual: Tensor | None = None,
        out_scales: Tensor | None = None,
        *,
        programmatic: bool = False,
    ) -> Tensor:
        """(M,) float32, (N,) float32, (N,) float16 [, (M, N) float16] -> `out` (M, N) float16.

        With `head_tokens`, `out` is what `vision_heads.empty` makes; otherwise rows of `out` and of
        the residual are equally far apart, by a multiple of 16 bytes.
        Block scales are (number of blocks, M) float32, those of the inputs and `out_scales`.
        """
        assert out.untyped_storage().nbytes() < 2**32, "places in the output are counted in 32 bits"
        arguments = [
            self._codes,
            self._weight,
            scales,
            weight_scale,
            bias,
            residual,
            out,
            out_scales,
        ]
        self._kernel.launch(
            grid=(self._blocks,),
            block=(THREADS,),
            args=[*arguments, self.m, self.n, self.k, out.stride(0)],
            shared_bytes=self.tiling.shared_bytes,
            programmatic=programmatic,
        )
        return out

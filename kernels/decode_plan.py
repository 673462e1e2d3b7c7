# SPDX-License-Identifier: Apache-2.0
"""How the decode kernels are cut to a GPU: threads, blocks, stages of the rings, shared memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from nvila_ros.errors import KernelError
from nvila_ros.kernels import driver
from nvila_ros.kernels.packing import ROWS_GROUP

MAX_ROWS = 8
FEWEST_PAIRS = 4  # of outputs that are worth a block
STAGE_BYTES = 2176  # of a unit: codes and scales (decode_linear.cuh)
HEAD_STAGE_BYTES = 1024  # 16 tokens x 64 inputs
ROOM_BYTES = 4 * 40  # block-wide reductions (decode.cu)
DRIVER_BYTES = 1024  # of a multiprocessor's shared memory, kept by the driver for each block
HEAD_WARPS, HEAD_STAGES = 8, 8
MORE_HEAD_STAGES = 12  # where two blocks of a multiprocessor have room for them
STATIC_BYTES = 256  # of a block of the head, at most
ATTENTION_WARPS = 8  # a block looks at 16 keys per warp at a time
MAX_SPLITS = 64  # blocks that share the keys of one key-value head


@dataclass(frozen=True)
class Tuning:
    """How a linear is cut, as measured on a generation."""

    max_warps: int  # of a block
    stages: tuple[int, ...]  # units of 32 outputs x one group that a warp has in flight
    min_blocks: int  # of a multiprocessor


TWO_BLOCKS = Tuning(14, (3, 2), 2)  # 448 threads of 72 registers
ONE_BLOCK = Tuning(20, (4, 3, 2), 1)  # 640 threads of 96: Hopper, whose kernels start early


@dataclass(frozen=True)
class Device:
    """What limits a launch."""

    num_multiprocessors: int
    block_bytes: int  # shared memory that one block may have
    multiprocessor_bytes: int
    capability: tuple[int, int] = (8, 0)

    @property
    def tuning(self) -> Tuning:
        return ONE_BLOCK if self.capability[0] == 9 else TWO_BLOCKS


@dataclass(frozen=True)
class Plan:
    """One launch. `defines` choose the compiled code."""

    defines: Mapping[str, int]
    num_blocks: int
    num_chunks: int  # of BATCH rows
    num_warps: int
    shared_bytes: int


H100 = Device(132, 232448, 233472, (9, 0))


@functools.cache
def device_of(index: int) -> Device:
    """The limits of a CUDA device."""
    return Device(
        driver.device_attribute(driver.MULTIPROCESSORS, index),
        driver.device_attribute(driver.BLOCK_SHARED_BYTES, index),
        driver.device_attribute(driver.MULTIPROCESSOR_SHARED_BYTES, index),
        torch.cuda.get_device_capability(index),
    )


@functools.cache
def plan_linear(device: Device, num_rows: int, num_pairs: int, num_inputs: int) -> Plan:
    """For M rows, N / 2 pairs of outputs, K inputs. Two blocks fit a multiprocessor if possible."""
    if not 1 <= num_rows <= MAX_ROWS or num_inputs % ROWS_GROUP:
        raise KernelError(
            f"{num_rows} rows of {num_inputs} inputs; 1 to {MAX_ROWS} rows and a multiple of "
            f"{ROWS_GROUP} inputs are expected"
        )
    num_groups = num_inputs // ROWS_GROUP
    tuning = device.tuning
    most = tuning.max_warps
    num_warps = min(range(1, most + 1), key=lambda warps: _idle(num_groups, warps, most))
    half = device.multiprocessor_bytes // 2 - DRIVER_BYTES
    for batch in _batches(num_rows):
        for limit in (min(half, device.block_bytes), device.block_bytes):
            found = []
            for stages in tuning.stages:
                cut = functools.partial(_linear_bytes, num_warps, stages, batch, num_inputs)
                num_blocks = _fewest_blocks(device, num_warps, num_pairs, cut, limit)
                if num_blocks is not None:
                    found.append((num_blocks, -stages, cut(num_pairs, num_blocks)))
            if found:
                num_blocks, stages, shared_bytes = min(found)
                defines = {
                    "BATCH": batch,
                    "STAGES": -stages,
                    "MIN_BLOCKS": tuning.min_blocks if batch < 4 else 1,
                    "MAX_THREADS": 32 * most,
                }
                chunks = -(-num_rows // batch)
                return Plan(defines, num_blocks, chunks, num_warps, shared_bytes)
    raise KernelError(
        f"{num_inputs} inputs do not fit the {device.block_bytes} bytes of shared memory of a block"
    )


def _fewest_blocks(
    device: Device, num_warps: int, num_pairs: int, cut: Callable[[int, int], int], limit: int
) -> int | None:
    """As many as run at once, or a multiple where their sums would not fit `limit` bytes."""
    at_once = device.num_multiprocessors * max(1, device.tuning.max_warps // num_warps)
    for num_blocks in range(at_once, max(num_pairs, at_once) + 1, at_once):
        few = min(num_blocks, -(-num_pairs // FEWEST_PAIRS))
        if cut(num_pairs, few) <= limit:
            return few
    return None


def _idle(num_groups: int, num_warps: int, most: int) -> float:
    """Time lost to warps that wait for the busiest, and to having few of them."""
    return -(-num_groups // num_warps) * num_warps / num_groups + 0.02 * (most - num_warps)


def _batches(num_rows: int) -> list[int]:
    """Rows that one pass over the weight may serve, the best first."""
    whole = next(batch for batch in (1, 2, 4, 8) if batch >= num_rows)
    return [batch for batch in (8, 4, 2, 1) if batch <= whole]


def _linear_bytes(
    num_warps: int, stages: int, batch: int, num_inputs: int, num_pairs: int, num_blocks: int
) -> int:
    pairs = -(-num_pairs // num_blocks)
    slots = -(-pairs // 8) * 16
    rows = batch * (num_inputs * 2 + 16 + num_inputs // ROWS_GROUP * 4)
    sums = num_warps * batch * slots * 4
    return num_warps * stages * STAGE_BYTES + rows + ROOM_BYTES + sums


@functools.cache
def plan_head(device: Device, num_rows: int, num_tokens: int, num_inputs: int) -> Plan:
    """For M rows, V or A tokens, D inputs."""
    if not 1 <= num_rows <= MAX_ROWS or num_inputs % 64:
        raise KernelError(
            f"{num_rows} rows of {num_inputs} inputs; 1 to {MAX_ROWS} rows and a multiple of "
            "64 inputs are expected"
        )
    batch = _batches(num_rows)[0]
    rows = batch * (num_inputs * 2 + 16)
    most = HEAD_WARPS * MORE_HEAD_STAGES * HEAD_STAGE_BYTES + rows
    has_room = 2 * (most + STATIC_BYTES + DRIVER_BYTES) <= device.multiprocessor_bytes
    stages = MORE_HEAD_STAGES if has_room else HEAD_STAGES
    shared = HEAD_WARPS * stages * HEAD_STAGE_BYTES + rows
    tiles = -(-num_tokens // 16)
    blocks = min(2 * device.num_multiprocessors, -(-tiles // (1 if tiles < 64 else HEAD_WARPS)))
    if shared > device.block_bytes:
        raise KernelError(
            f"{num_rows} rows of {num_inputs} inputs need {shared} bytes of shared memory, a block "
            f"has {device.block_bytes} here; give fewer rows"
        )
    return Plan({"BATCH": batch, "HEAD_STAGES": stages}, blocks, 1, HEAD_WARPS, shared)


@functools.cache
def plan_attention(device: Device, cache_length: int, head_dim: int) -> Plan:
    """For a cache of S slots; `num_blocks` is the number of splits."""
    if head_dim not in (64, 128):
        raise KernelError(f"heads of {head_dim}; 64 or 128 are expected")
    row_bytes = (head_dim + 8) * 2
    for num_warps in (ATTENTION_WARPS, 4, 2):
        tile_keys = 16 * num_warps
        shared = max((2 * tile_keys + 16) * row_bytes, num_warps * 16 * head_dim * 4)
        if shared <= device.block_bytes:
            splits = min(MAX_SPLITS, -(-cache_length // tile_keys))
            return Plan({"HEAD_DIM": head_dim}, splits, 1, num_warps, shared)
    raise KernelError(
        f"attention over heads of {head_dim} needs {shared} bytes of shared memory, a block has "
        f"{device.block_bytes} on this GPU; run with backend torch"
    )

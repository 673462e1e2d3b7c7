# SPDX-License-Identifier: Apache-2.0
"""Int4 weights times many rows of fp16 activations (prefill, the grammar tree): M > 8.

Two kernels answer: `w4a16_hopper.cu` (wgmma, fp32 sums) on sm_90, and `w4a16_mma.cu` on every GPU
from sm_80 up, which sums in fp16 inside a group of 128 and in fp32 between groups: twice the rate
on GeForce. Letters: M rows (tokens), K inputs, N outputs, G = K / 128 groups.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from nvila_ros.kernels import build, driver, reference
from nvila_ros.kernels.packing import ROWS_GROUP, RowsInt4
from nvila_ros.kernels.w4a16_gemm_plan import (
    MOST_PARTIAL_VALUES,
    HopperPlan,
    hopper_plan,
    mma_plan,
)

Accumulate = Literal["auto", "fp16", "fp32"]
_HOPPER_THREADS = 384
_MAX_FLAGS = 65536  # of tiles or blocks that share one; zero between launches
_MOST_MAPS = 4096  # kept for the copy engine


def w4a16_matmul(
    x: Tensor,
    weight: RowsInt4,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    accumulate: Accumulate = "auto",
) -> Tensor:
    """(M, K) fp16, bias (N,) fp16, residual (M, N) fp16 -> (M, N) fp16: x W^T + bias + residual.

    accumulate: "fp32" sums in fp32; "fp16" sums each group of 128 in fp16 (about 4.5e-4 relative
    error, scaled so that no sum overflows); "auto" takes what is fastest on the GPU.
    Without a kernel for the tensor's device the slow twin answers, in any float dtype.
    """
    if not _has_kernel(x):
        result = reference.w4a16_rows(x, weight, bias, residual)
        return result if out is None else out.copy_(result)
    _check(x, weight)
    if out is None:
        out = torch.empty(x.shape[0], weight.num_outputs, dtype=x.dtype, device=x.device)
    if x.shape[0] == 0:
        return out
    if accumulate != "fp16" and _is_hopper(x.device.index):
        _launch_hopper(x, weight, bias, residual, out, is_gate_up=False)
    else:
        _launch_mma(x, weight, bias, residual, out, is_half_sum=accumulate != "fp32")
    return out


def w4a16_gate_up(
    x: Tensor, weight: RowsInt4, out: Tensor | None = None, accumulate: Accumulate = "auto"
) -> Tensor:
    """(M, K) fp16, weight (2 I, K): gate rows, then up rows -> silu(gate) * up, (M, I) fp16."""
    if not _has_kernel(x):
        result = reference.silu_mul(reference.w4a16_rows(x, weight))
        return result if out is None else out.copy_(result)
    _check(x, weight)
    if out is None:
        out = x.new_empty(x.shape[0], weight.num_outputs // 2)
    if x.shape[0] == 0:
        return out
    if accumulate != "fp16" and _is_hopper(x.device.index):
        _launch_hopper(x, weight, None, None, out, is_gate_up=True)
    else:
        is_half_sum = accumulate != "fp32"
        _launch_mma(x, weight, None, None, out, is_half_sum=is_half_sum, is_gate_up=True)
    return out


def ahead_of_time() -> Iterator[tuple[str, Mapping[str, object]]]:
    """Sources and defines that `python -m nvila_ros.kernels.build` compiles."""
    for rows in (16, 64, 1088):
        for is_gate_up in (False, True):
            plan = mma_plan(rows, 3584, 28, 76, is_gate_up)
            yield "w4a16_mma.cu", plan.defines(is_half_sum=True)


def ahead_of_time_hopper() -> Iterator[tuple[str, Mapping[str, object]]]:
    """The same for sm_90a alone: every tile that a prompt's rows are given."""
    for rows in (32, 64, 96, 128, 192, 224):
        for is_gate_up in (False, True):
            yield "w4a16_hopper.cu", hopper_plan(rows, 3584, 28, is_gate_up).defines()


def _has_kernel(x: Tensor) -> bool:
    return x.dtype == torch.float16 and build.is_fast(x)


@functools.cache
def _is_hopper(index: int) -> bool:
    return torch.cuda.get_device_capability(index) == (9, 0)


@functools.cache
def _num_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _check(x: Tensor, weight: RowsInt4) -> None:
    if x.dim() != 2 or x.shape[1] != weight.num_inputs:
        raise ValueError(f"x is {tuple(x.shape)}, expected (M, {weight.num_inputs})")
    num_groups = weight.scale_zero.shape[1]
    if num_groups * ROWS_GROUP != weight.num_inputs:
        raise ValueError(
            f"{num_groups} groups along {weight.num_inputs} inputs; the int4 kernels read groups "
            f"of {ROWS_GROUP}"
        )


_scratch: dict[tuple[int, str], list[Tensor]] = {}


def _buffer(name: str, device: torch.device, num_values: int, dtype: torch.dtype) -> Tensor:
    """A kept buffer of at least that size, zero when new; products run one after the other.

    One that became too small is kept as well: a captured graph may point into it.
    """
    kept = _scratch.setdefault((device.index, name), [])
    if not kept or kept[-1].numel() < num_values:
        assert not torch.cuda.is_current_stream_capturing(), "run the product once before capture"
        kept.append(torch.zeros(num_values, dtype=dtype, device=device))
    return kept[-1]


@functools.lru_cache(maxsize=4096)
def _hopper_work(
    index: int, num_tokens: int, num_rows: int, num_groups: int, is_gate_up: bool
) -> tuple[HopperPlan, driver.Kernel, int]:
    """What every product of a size has in common: plan, kernel, blocks."""
    plan = hopper_plan(num_tokens, num_rows, num_groups, is_gate_up)
    clusters = _num_multiprocessors(index) // plan.cluster
    blocks = min(clusters, plan.num_tiles * num_groups) * plan.cluster
    module = build.load("w4a16_hopper.cu", plan.defines(), index)
    return plan, module.kernel("w4a16_hopper"), blocks


def _launch_hopper(
    x: Tensor,
    weight: RowsInt4,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    is_gate_up: bool,
) -> None:
    num_tokens, num_rows, num_groups = x.shape[0], weight.num_outputs, weight.scale_zero.shape[1]
    index = x.device.index
    plan, kernel, blocks = _hopper_work(index, num_tokens, num_rows, num_groups, is_gate_up)
    most = _num_multiprocessors(index) * MOST_PARTIAL_VALUES
    kernel.launch(
        grid=(blocks,),
        block=(_HOPPER_THREADS,),
        args=[
            _map_of(x.contiguous(), (plan.tile_tokens // plan.cluster, 64), 128),
            _map_of(weight.qweight, (64, 16), 64),
            weight.scale_zero,
            bias,
            residual,
            out,
            _buffer("partials", x.device, most, torch.float32),
            _buffer("flags", x.device, _MAX_FLAGS, torch.int32),
            num_tokens,
            num_rows,
            num_groups,
        ],
        shared_bytes=plan.shared_bytes,
        programmatic=True,
        cluster=(plan.cluster,) if plan.cluster > 1 else None,
    )


_maps: dict[tuple[int, ...], driver.TensorMap] = {}


def _map_of(matrix: Tensor, box: tuple[int, int], swizzle: int) -> driver.TensorMap:
    """A map says no more than address, shape and box: kept, whatever lies there later."""
    key = (matrix.data_ptr(), *matrix.shape, *box)
    found = _maps.get(key)
    if found is None:
        if len(_maps) >= _MOST_MAPS:
            _maps.clear()
        found = _maps[key] = driver.tensor_map(matrix, box, swizzle=swizzle)
        del found.tensor  # kept alive by its owner, not from here
    return found


def _launch_mma(
    x: Tensor,
    weight: RowsInt4,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    is_half_sum: bool,
    is_gate_up: bool = False,
) -> None:
    num_tokens, num_rows, num_groups = x.shape[0], weight.num_outputs, weight.scale_zero.shape[1]
    x, index = x.contiguous(), x.device.index
    plan = mma_plan(num_tokens, num_rows, num_groups, _num_multiprocessors(index), is_gate_up)
    module = build.load("w4a16_mma.cu", plan.defines(is_half_sum=is_half_sum), index)
    exponents = _buffer("exponents", x.device, max(num_tokens, 4096), torch.int32)
    if is_half_sum:
        module.kernel("w4a16_exponents").launch(
            grid=(num_tokens,), block=(128,), args=[x, exponents, num_groups]
        )
    most = max(plan.partial_values, _num_multiprocessors(index) * 128 * 128)
    module.kernel("w4a16_mma").launch(
        grid=plan.grid,
        block=(plan.num_threads,),
        args=[
            x,
            weight.qweight,
            weight.scale_zero,
            bias,
            residual,
            out,
            exponents,
            _buffer("mma_partials", x.device, most, torch.float32),
            _buffer("mma_counters", x.device, _MAX_FLAGS, torch.int32),
            num_tokens,
            num_rows,
            num_groups,
        ],
        shared_bytes=plan.shared_bytes,
    )

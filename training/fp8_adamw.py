# SPDX-License-Identifier: Apache-2.0
"""AdamW whose moments are float8: two bytes a parameter instead of eight.

Moments are kept in blocks of 256 neighbours, each with one float32 scale. The first moment m is
stored as E4M3. Of the second, v, the *root* is stored: the step divides by it, and it spans half as
many orders of magnitude, so E4M3's 2^17 between smallest and largest stand for 2^34 of v within a
block. A root that is not zero never becomes zero: a neighbour of a huge gradient cannot divide by
nothing.

Weights in bfloat16 are rounded stochastically: a step far below their spacing still moves them as
often as it should. The random bits are a hash of (step, parameter, place), so a resumed run is
bit-identical. On CUDA one Triton kernel does a parameter; elsewhere, as the kernel's twin, torch.
Small parameters keep float32 moments and take their step together (`fp8_adamw_small`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError
from nvila_ros.training.fp8_adamw_small import SmallTensors, random_seed, update_small
from nvila_ros.training.sharded import local

BLOCK = 256  # neighbours that share a scale
MIN_NUMEL = 4096  # smaller tensors (norms, biases) keep float32 moments
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
FLOAT8_TINY = 2.0**-9  # the smallest E4M3 above zero
CHUNK_BLOCKS = 1 << 16  # the twin works on this many blocks at a time


class Float8AdamW(torch.optim.Optimizer):
    """AdamW with block-scaled float8 moments; parameters are float32 or bfloat16.

    With FSDP2 each rank keeps the moments of its own shard, and they are sharded tensors too:
    blocks begin anew on every rank, so checkpoints resume on as many ranks as wrote them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            small: defaultdict[tuple[Any, ...], SmallTensors] = defaultdict(SmallTensors)
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, number, small)
            for (step, *_), tensors in small.items():
                factors = step_factors(group, step)
                update_small(tensors, factors, step, _step, round_stochastically)
        return loss

    def _update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        group: dict[str, Any],
        number: int,
        small: dict[tuple[Any, ...], SmallTensors],
    ) -> None:
        """Takes the step, or notes in `small` what takes it with its like."""
        weight, gradient = local(parameter.detach()), local(gradient)
        if weight.dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(
                f"a parameter is {weight.dtype}; AdamW with float8 states expects float32 or "
                "bfloat16"
            )
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state |= new_moments(parameter.detach())
        state["step"] += 1
        if not weight.numel():
            return  # a small parameter on many ranks
        moments = {key: local(value) for key, value in state.items() if key != "step"}
        if "first_scale" not in state:
            key = (state["step"], weight.dtype, gradient.dtype, weight.device)
            small[key].add(weight, gradient, moments, number)
            return
        update = _kernel_for(weight) or update_blocks
        factors = step_factors(group, state["step"])
        update(weight, gradient.contiguous(), moments, factors, random_seed(state["step"], number))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's, but codes stay float8: torch would give them the weight's dtype."""
        super().load_state_dict(state_dict)
        stored = state_dict["state"]
        saved_ids = [each for group in state_dict["param_groups"] for each in group["params"]]
        own = [each for group in self.param_groups for each in group["params"]]
        for saved_id, parameter in zip(saved_ids, own, strict=True):
            if saved_id in stored:
                device = local(parameter).device
                self.state[parameter] = {
                    key: value.to(device, copy=True) if isinstance(value, Tensor) else value
                    for key, value in stored[saved_id].items()
                }


def new_moments(weight: Tensor) -> dict[str, Tensor]:
    """Zero moments: float8 codes (blocks, 256) with scales (blocks,), or float32 where small.

    Of a sharded weight they are sharded: every rank has as many blocks as the fullest one needs.
    """
    numel = _fullest_share(weight)
    if numel < MIN_NUMEL:
        zeros = torch.zeros_like(weight, dtype=torch.float32)
        return {"first": zeros, "root": zeros.clone()}
    blocks, device = -(-numel // BLOCK), local(weight).device
    codes = torch.zeros(blocks, BLOCK, dtype=torch.uint8, device=device).view(FLOAT8)
    scales = torch.zeros(blocks, dtype=torch.float32, device=device)
    return {
        "first": _sharded_like(weight, codes),
        "first_scale": _sharded_like(weight, scales),
        "root": _sharded_like(weight, codes.clone()),
        "root_scale": _sharded_like(weight, scales.clone()),
    }


def step_factors(group: dict[str, Any], step: int) -> tuple[float, ...]:
    """Learning rate, both betas and their complements, epsilon, decay, two bias corrections."""
    first_beta, second_beta = group["betas"]
    return (
        float(group["lr"]),
        first_beta,
        1.0 - first_beta,
        second_beta,
        1.0 - second_beta,
        group["eps"],
        group["weight_decay"],
        1.0 - first_beta**step,
        (1.0 - second_beta**step) ** 0.5,
    )


def hashed(index: Tensor, seed: int) -> Tensor:
    """int64 places -> 32 well mixed bits each, as int64 (Wang-style multiply and shift rounds)."""
    mask = 0xFFFFFFFF
    mixed = (index + seed) & mask
    mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & mask
    mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & mask
    return mixed ^ (mixed >> 16)


def round_stochastically(values: Tensor, index: Tensor, seed: int) -> Tensor:
    """float32 -> bfloat16, up with the probability of how far it is on the way there."""
    noise = (hashed(index, seed) & 0xFFFF).to(torch.int32)
    bits = (values.view(torch.int32) + noise) & -65536
    return bits.view(torch.float32).to(torch.bfloat16)


def quantize(values: Tensor, keeps_tiny: bool) -> tuple[Tensor, Tensor]:
    """(blocks, 256) float32 -> E4M3 codes and a scale for each block.

    `keeps_tiny` holds what is above zero above zero.
    """
    scale = values.abs().amax(1) / FLOAT8_MAX
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    codes = values * inverse[:, None]
    if keeps_tiny:
        codes = torch.where(codes > 0, codes.clamp(min=FLOAT8_TINY), codes)
    return codes.to(FLOAT8), scale


def update_blocks(
    weight: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    factors: tuple[float, ...],
    seed: int,
) -> None:
    """The twin of the kernel, in place, a stretch of blocks at a time."""
    flat, flat_gradient = weight.view(-1), gradient.view(-1)
    blocks = -(-flat.numel() // BLOCK)
    for begin in range(0, blocks, CHUNK_BLOCKS):
        part = slice(begin, min(blocks, begin + CHUNK_BLOCKS))
        places = slice(begin * BLOCK, min(flat.numel(), part.stop * BLOCK))
        padding = (part.stop - begin) * BLOCK - (places.stop - places.start)
        values, gradients = (
            torch.nn.functional.pad(each[places].float(), (0, padding)).view(-1, BLOCK)
            for each in (flat, flat_gradient)
        )
        first = state["first"][part].float() * state["first_scale"][part, None]
        root = state["root"][part].float() * state["root_scale"][part, None]
        values, first, root = _step(values, gradients, first, root, factors)
        state["first"][part], state["first_scale"][part] = quantize(first, keeps_tiny=False)
        state["root"][part], state["root_scale"][part] = quantize(root, keeps_tiny=True)
        values = values.view(-1)[: places.stop - places.start]
        if weight.dtype == torch.bfloat16:
            index = torch.arange(places.start, places.stop, device=weight.device)
            values = round_stochastically(values, index, seed)
        flat[places] = values


def _step(
    values: Tensor, gradient: Tensor, first: Tensor, root: Tensor, factors: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """AdamW in float32; `root` is the root of the second moment."""
    rate, first_beta, first_share, second_beta, second_share, eps, decay = factors[:7]
    first_correction, root_correction = factors[7:]
    first = first_beta * first + first_share * gradient
    root = (second_beta * root * root + second_share * gradient * gradient).sqrt()
    values = values * (1.0 - rate * decay)
    values = values - rate * (first / first_correction) / (root / root_correction + eps)
    return values, first, root


def _kernel_for(weight: Tensor) -> Callable | None:
    """The Triton kernel where it can run: CUDA with float8 conversions (sm_89)."""
    if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < (8, 9):
        return None
    try:
        from nvila_ros.training.fp8_adamw_triton import update_blocks as update
    except ImportError:
        return None
    return update


def _fullest_share(tensor: Tensor) -> int:
    """Numbers that the rank with the most of a sharded tensor holds."""
    shape = list(tensor.shape)
    for placement, count in zip(*_sharding(tensor), strict=True):
        if placement.is_shard():
            shape[placement.dim] = -(-shape[placement.dim] // count)
    return math.prod(shape)


def _sharded_like(weight: Any, share: Tensor) -> Tensor:
    """What this rank holds of a tensor that is spread over the ranks as the weight is."""
    placements, _ = _sharding(weight)
    if not placements:
        return share
    from torch.distributed.tensor import DTensor, Shard

    spread = [Shard(0) if placement.is_shard() else placement for placement in placements]
    return DTensor.from_local(share, weight.device_mesh, spread, run_check=False)


def _sharding(tensor: Any) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Placements and the number of ranks of each dimension of the mesh; empty if not sharded."""
    if not hasattr(tensor, "to_local"):
        return (), ()
    return tuple(tensor.placements), tuple(tensor.device_mesh.shape)

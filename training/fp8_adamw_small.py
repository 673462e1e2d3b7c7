# SPDX-License-Identifier: Apache-2.0
"""AdamW's step of many small tensors at once: norms and biases, whose moments stay float32.

A network of 54 layers has nearly 400 of them. One by one they take forty operations each, which a
GPU finishes sooner than a host can ask for them; laid end to end they take forty in all. The result
is the same to the last bit: every number keeps its place and its parameter's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_FACTOR, NUMBER_FACTOR, SEED_MASK = 0x9E3779B1, 0x85EBCA6B, 0x7FFFFFFF


def random_seed(step: int, number: int) -> int:
    """31 bits that differ from step to step and from parameter to parameter."""
    return (step * STEP_FACTOR + number * NUMBER_FACTOR) & SEED_MASK


@dataclass
class SmallTensors:
    """Tensors of one dtype and device that take the same step; lists go in parallel."""

    weights: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    firsts: list[Tensor] = field(default_factory=list)  # float32, in the weight's shape
    roots: list[Tensor] = field(default_factory=list)  # float32: of the second moment
    numbers: list[int] = field(default_factory=list)  # of the parameters, for their seeds

    def add(self, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], number: int) -> None:
        """One more."""
        self.weights.append(weight)
        self.gradients.append(gradient)
        self.firsts.append(state["first"])
        self.roots.append(state["root"])
        self.numbers.append(number)

    def places_and_seeds(self, step: int) -> Tensor:
        """int64 (n,) of all numbers: place within the tensor plus the tensor's seed."""
        sizes = tuple(weight.numel() for weight in self.weights)
        places, numbers = _places(sizes, tuple(self.numbers), self.weights[0].device)
        return places + ((numbers * NUMBER_FACTOR + step * STEP_FACTOR) & SEED_MASK)


def update_small(
    tensors: SmallTensors,
    factors: tuple[float, ...],
    step: int,
    adamw: Callable[..., tuple[Tensor, Tensor, Tensor]],
    round_up_or_down: Callable[[Tensor, Tensor, int], Tensor],
) -> None:
    """One step of all of them, in place.

    `adamw` takes float32 values, gradients, both moments and `factors`; `round_up_or_down` makes
    bfloat16 of the values, given hashed places.
    """
    joined = (
        torch.cat([each.reshape(-1) for each in part]).float()
        for part in (tensors.weights, tensors.gradients, tensors.firsts, tensors.roots)
    )
    values, first, root = adamw(*joined, factors)
    if tensors.weights[0].dtype == torch.bfloat16:
        values = round_up_or_down(values, tensors.places_and_seeds(step), 0)
    _write(tensors.weights, values)
    _write(tensors.firsts, first)
    _write(tensors.roots, root)


def _write(tensors: Sequence[Tensor], joined: Tensor) -> None:
    """Each tensor's stretch of the joined numbers, one launch for all."""
    parts = joined.split([each.numel() for each in tensors])
    shaped = [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), shaped)


@lru_cache(maxsize=8)
def _places(
    sizes: tuple[int, ...], numbers: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """int64 (n,) place of every number within its tensor, and the number of that tensor."""
    places = torch.cat([torch.arange(size) for size in sizes])
    repeated = torch.repeat_interleave(torch.tensor(numbers), torch.tensor(sizes))
    return places.to(device), repeated.to(device)

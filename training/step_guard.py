# SPDX-License-Identifier: Apache-2.0
"""Keeps a gradient that is no number from the weights, and ends a run that meets too many.

The gradients of all parameters lie in one buffer: one kernel clears them, one measures them, one
scales them or, where their norm is not finite, makes them zero. The host learns of it two steps
later, so it need not wait for the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.errors import TrainingError

MAX_QUEUED_STEPS = 2  # the host does not run further ahead of the device
MOST_IN_A_ROW = 10
ALIGNMENT = 64  # elements: kernels that load several at once find every gradient aligned


@dataclass
class _Step:
    """A step that the device may not have finished."""

    number: int
    samples: str  # what its batches held, for the message
    norm: Tensor  # () float32 in (pinned, where there is a GPU) host memory
    event: torch.cuda.Event | None


class StepGuard:
    """Owns the gradients of `parameters` and the queue of steps under way."""

    def __init__(self, parameters: Sequence[Tensor], max_norm: float) -> None:
        self.max_norm = max_norm
        self.num_skipped = self.num_in_a_row = 0
        self.waited_s = 0.0
        self._queue: deque[_Step] = deque()
        first = parameters[0]
        self._is_cuda = first.is_cuda
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in parameters]
        self.gradients = torch.zeros(sum(sizes), device=first.device)  # float32
        for parameter, part in zip(parameters, self.gradients.split(sizes), strict=True):
            parameter.grad = part[: parameter.numel()].view_as(parameter)

    def clear(self) -> None:
        """Zeros in place: a recorded step adds to this memory."""
        self.gradients.zero_()

    def clip(self) -> Tensor:
        """Scales the gradients to at most `max_norm`, or to nothing; returns their norm ().

        A norm that is infinite or no number leaves zeros: the optimizers then only go on with
        their momentum.
        """
        norm = torch.linalg.vector_norm(self.gradients)
        factor = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        self.gradients.copy_(torch.where(norm.isfinite(), self.gradients * factor, 0.0))
        return norm

    def queue(self, number: int, norm: Tensor, samples: str) -> None:
        """Notes a step that was launched; waits where the device is too far behind.

        Raises TrainingError when `MOST_IN_A_ROW` steps in a row were skipped.
        """
        event = None
        if self._is_cuda:
            seen = torch.empty((), pin_memory=True)
            seen.copy_(norm, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            seen = norm.clone()
        self._queue.append(_Step(number, samples, seen, event))
        if not self._is_cuda or len(self._queue) > MAX_QUEUED_STEPS:
            self._finish(self._queue.popleft())

    def finish(self) -> None:
        """Waits for every step that is under way."""
        while self._queue:
            self._finish(self._queue.popleft())

    def _finish(self, step: _Step) -> None:
        if step.event is not None:
            begin_s = time.perf_counter()
            step.event.synchronize()
            self.waited_s += time.perf_counter() - begin_s
        if bool(step.norm.isfinite()):
            self.num_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_in_a_row += 1
        what = f"step {step.number} was skipped: its gradient's norm is {float(step.norm)}"
        print(f"{what}; in the batch: {step.samples}", flush=True)
        if self.num_in_a_row >= MOST_IN_A_ROW:
            raise TrainingError(
                f"{what}, as in the {MOST_IN_A_ROW - 1} steps before; expected a finite one. In "
                f"the batch: {step.samples}. The weights saved last are good: go on from them "
                "with a smaller matrix_lr and other_lr, or another seed"
            )

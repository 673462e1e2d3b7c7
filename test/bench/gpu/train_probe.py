# SPDX-License-Identifier: Apache-2.0
"""How many samples fit: bytes of a few small steps; what to try where they promised too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

PROBES = (2, 4, 6)  # samples


def probed(
    trainer: Any, batch_of: Callable[[int], Any], say: Callable[[str], None]
) -> list[tuple[int, int]]:
    """Tokens and peak bytes of a second step of each of `PROBES`, as far as they fit.

    Fit a line to the last two: of few samples the peak is not of activations, at the end of the
    forward pass, but of gradients, at the end of the backward pass, and says nothing of the slope.
    """
    points: list[tuple[int, int]] = []
    for count in PROBES:
        batch = batch_of(count)
        try:
            if not points:
                trainer.step(batch)  # moments exist after the first
            torch.cuda.reset_peak_memory_stats()
            trainer.step(batch)
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            if len(points) < 2:
                raise
            trainer.optimizer.zero_grad(set_to_none=True)
            break
        points.append((len(batch), torch.cuda.max_memory_allocated()))
        say(f"probe, {count} samples: {points[-1][1] / 1e9:.1f} GB")
    return points


def lower(count: int) -> list[int]:
    """Smaller batches to try where `count` samples do not fit: one less, two less, then shares."""
    found = {count - 1, count - 2, int(0.7 * count), int(0.5 * count)}
    return sorted((each for each in found if 0 < each < count), reverse=True)

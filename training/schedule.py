# SPDX-License-Identifier: Apache-2.0
"""The learning rate over a stage: a linear rise, then a cosine down."""

from __future__ import annotations

import math
from typing import Any

from nvila_ros.training.stage_recipe import ScheduleConfig


def rate_factor(progress: float, schedule: ScheduleConfig) -> float:
    """Share of the peak rate at a share `progress` in [0, 1] of the stage."""
    if progress < schedule.warmup_share:
        return progress / schedule.warmup_share
    done = (progress - schedule.warmup_share) / (1.0 - schedule.warmup_share)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return schedule.final_share + (1.0 - schedule.final_share) * cosine


def set_rates(groups: list[dict[str, Any]], progress: float, schedule: ScheduleConfig) -> None:
    """Sets every group's rate for the step that comes next."""
    factor = rate_factor(progress, schedule)
    for group in groups:
        group["lr"] = group["peak_lr"] * factor


def stage_progress(step: int, samples: int, schedule: ScheduleConfig) -> float:
    """Share of the stage that is over, and 1 at its end.

    In the middle of step `step` (counted from 0), so that neither the first nor the last is wasted.
    """
    if schedule.steps is not None:
        return min(1.0, (step + 0.5) / schedule.steps)
    assert schedule.samples is not None
    return min(1.0, samples / schedule.samples)


def is_over(step: int, samples: int, schedule: ScheduleConfig) -> bool:
    """Whether the stage has done its steps or seen its samples."""
    if schedule.steps is not None:
        return step >= schedule.steps
    assert schedule.samples is not None
    return samples >= schedule.samples

# SPDX-License-Identifier: Apache-2.0
"""One decision, and what the worker needs of whoever takes it; light enough for every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvila_ros.actions import Action


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the model chose, how sure it was and what it looked at."""

    action: Action
    confidence: float  # probability of the choice among the ten, in [0, 1]
    probabilities: tuple[float, ...]  # of all ten, in the order of ACTIONS
    latency_s: float
    num_encoded_frames: int  # frames that went through the vision tower for this decision
    frame_indices: tuple[int | None, ...]  # sampled frames shown, oldest first; None is black
    stamp_s: float  # time stamp of the current frame
    pose: tuple[float, float, float] | None = None  # x_m, y_m, yaw_rad of the current frame

    @property
    def index(self) -> int:
        return self.action.index

    @property
    def sentence(self) -> str:
        return self.action.sentence


class Policy(Protocol):
    """What the worker needs of nvila_ros.policy.NavigationPolicy.

    A policy may also have `strip()` (JPEG bytes of what the last decision saw), `is_alive()` (False
    once its process has ended), `kill()` and `memory_bytes()`.
    """

    def reset(self, instruction: str) -> None: ...

    def observe(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool: ...

    def decide(self) -> Decision: ...

    def tried(self, decision: Decision) -> None: ...

    def prepare(self) -> int: ...

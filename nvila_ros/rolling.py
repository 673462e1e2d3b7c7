# SPDX-License-Identifier: Apache-2.0
"""Rolling figures for diagnostics: percentiles of durations, rates of what arrives."""

from __future__ import annotations

import math
from collections import deque

import numpy as np


class Durations:
    """The newest durations: how long something takes, in the middle and at worst."""

    def __init__(self, capacity: int = 200) -> None:
        self._values_s: deque[float] = deque(maxlen=capacity)
        self.count = 0
        self.max_s = 0.0  # ever

    def add(self, duration_s: float) -> None:
        """Takes one."""
        self._values_s.append(duration_s)
        self.count += 1
        self.max_s = max(self.max_s, duration_s)

    def percentile_s(self, percent: float) -> float:
        """Of the newest; nan when there is none."""
        return float(np.percentile(self._values_s, percent)) if self._values_s else math.nan


class Arrivals:
    """When messages came and what their stamps say: the rate here, and the rate at the source."""

    def __init__(self, window_s: float = 3.0) -> None:
        self._window_s = window_s
        self._heard: deque[tuple[float, float]] = deque(maxlen=2000)  # (now_s, stamp_s)
        self.count = 0

    def add(self, now_s: float, stamp_s: float) -> None:
        """One message; a stamp of zero says nothing."""
        self._heard.append((now_s, stamp_s))
        self.count += 1

    def age_s(self, now_s: float) -> float:
        """Since the last message; inf when there was none."""
        return now_s - self._heard[-1][0] if self._heard else math.inf

    def rate_hz(self, now_s: float) -> float:
        """Messages per second over the last seconds."""
        while self._heard and now_s - self._heard[0][0] > self._window_s:
            self._heard.popleft()
        if len(self._heard) < 2:
            return 0.0
        return len(self._heard) / max(now_s - self._heard[0][0], 1e-3)

    def source_rate_hz(self) -> float:
        """The camera's own rate: lost messages leave gaps, the shortest gap is its period.

        Nan with fewer than five stamped messages.
        """
        stamps_s = np.array([stamp_s for _, stamp_s in self._heard if stamp_s > 0.0])
        if len(stamps_s) < 5:
            return math.nan
        gaps_s = np.diff(stamps_s)
        gaps_s = gaps_s[gaps_s > 1e-4]
        return float(1.0 / np.percentile(gaps_s, 10)) if len(gaps_s) else math.nan

# SPDX-License-Identifier: Apache-2.0
"""Sees that an episode leads nowhere: lost, unsure, unreadable, blocked, too long."""

from __future__ import annotations

import itertools
import math
from collections import deque

from nvila_ros.decision import Decision
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import Result
from nvila_ros.safety import Pose

OSCILLATIONS = 6  # turns to alternating sides, with nothing between them, that are one too many

End = tuple[Result, str]


class EpisodeWatch:
    """Counters of one episode; each method answers how the episode must end, or None."""

    def __init__(self, config: NavigatorConfig) -> None:
        self.config = config
        self.num_refusals = self.num_unsure = 0  # over all episodes, for diagnostics
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self._refusals = self._unsure = self._failed = 0
        self._poses: deque[Pose] = deque()
        self._turns: deque[int] = deque(maxlen=OSCILLATIONS)

    def refused(self, reason: str) -> End | None:
        """An answer that cannot be obeyed."""
        self._refusals += 1
        self.num_refusals += 1
        if self._refusals < self.config.max_refusals:
            return None
        count = self._refusals
        return Result.MODEL_ERROR, f"{count} answers in a row were unusable, the last: {reason}"

    def unsure(self, decision: Decision) -> bool:
        """Whether the model is too unsure to be obeyed."""
        self._refusals = 0
        if decision.confidence >= self.config.min_confidence:
            self._unsure = 0
            return False
        self._unsure += 1
        self.num_unsure += 1
        return True

    def unsure_end(self) -> End | None:
        """After an unsure decision."""
        if self._unsure < self.config.max_unsure_decisions:
            return None
        least = self.config.min_confidence
        return Result.LOW_CONFIDENCE, f"{self._unsure} decisions in a row were below {least:.2f}"

    def decided(self, decision: Decision, num_decisions: int, pose: Pose | None) -> End | None:
        """A decision that would be obeyed."""
        if num_decisions >= self.config.max_decisions:
            return Result.TIMEOUT, f"no stop after {num_decisions} decisions"
        return self._lost(decision, pose)

    def _lost(self, decision: Decision, pose: Pose | None) -> End | None:
        turn = decision.action.turn_rad
        if turn == 0.0:
            self._turns.clear()
        else:
            self._turns.append(1 if turn > 0 else -1)
        signs = list(self._turns)
        alternate = all(one == -other for one, other in itertools.pairwise(signs))
        if len(signs) == OSCILLATIONS and alternate:
            return Result.LOST, f"{OSCILLATIONS} turns left and right in turn"
        if pose is None:
            return None
        self._poses.append(pose)
        if len(self._poses) <= self.config.lost_after_decisions:
            return None
        first = self._poses.popleft()
        reach_m = max(math.hypot(x - first[0], y - first[1]) for x, y, _ in self._poses)
        if reach_m >= self.config.lost_radius_m:
            return None
        count = self.config.lost_after_decisions
        return Result.LOST, f"{count} decisions came no further than {reach_m:.2f} m"

    def motion_done(self) -> None:
        """The robot got where it was sent."""
        self._failed = 0

    def motion_failed(self, reason: str) -> End | None:
        """It did not; the model decides anew from where the robot stands, but not for ever."""
        self._failed += 1
        if self._failed < self.config.max_failed_primitives:
            return None
        return Result.OBSTACLE, f"{self._failed} motions failed in a row, the last: {reason}"

# SPDX-License-Identifier: Apache-2.0
"""Thinking while moving: when to ask before a motion has ended, and whether the answer still fits.

A decision is meant from where its frame was taken. When the robot has moved on a little since then,
what is left of the motion is driven; when it moved too far, the decision is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvila_ros.decision import Decision
from nvila_ros.rolling import Durations
from nvila_ros.safety import Pose
from nvila_ros.settings import check_settings, live_setting


@dataclass(frozen=True, kw_only=True)
class ThinkingConfig:
    """How early the next decision may be asked for."""

    ahead: bool = live_setting(True, "ask for the next decision shortly before a motion ends")
    ahead_m: float = live_setting(
        0.12,
        "a decision is asked for, and used, at most this far from its frame, m",
        at_least=0.0,
        at_most=0.5,
    )
    ahead_rad: float = live_setting(
        math.radians(8.0), "and at most this turn from it, rad", at_least=0.0, at_most=0.5
    )

    def __post_init__(self) -> None:
        check_settings(self)


FIRST_LATENCY_S = 0.15  # expected before anything was measured
MARGIN_S = 0.05  # one control interval
LONGEST_PERIOD_S = 0.15  # of a camera, that is waited for
SHORTEST_SHARE = 0.3  # at least this share of a motion is left, or it was not meant any more


class ThinkAhead:
    """Knows how long decisions take, and what is left of one that was taken on the way."""

    def __init__(self, config: ThinkingConfig) -> None:
        self.config = config
        self.latency = Durations(50)

    def expected_s(self) -> float:
        """How long the next decision will probably take."""
        percentile_s = self.latency.percentile_s(90.0)
        return FIRST_LATENCY_S if math.isnan(percentile_s) else percentile_s

    def is_time(
        self,
        remaining_s: float,
        remaining_m: float,
        remaining_rad: float,
        image_period_s: float = 0.0,
    ) -> bool:
        """Whether to ask now, this long and far before the end of the motion.

        The next chance comes with the next image: half a period later would be too late.
        """
        config = self.config
        return (
            config.ahead
            and remaining_s <= self.expected_s() + MARGIN_S + min(image_period_s, LONGEST_PERIOD_S)
            and remaining_m <= config.ahead_m
            and remaining_rad <= config.ahead_rad
        )

    def left_of(self, decision: Decision, pose: Pose) -> tuple[float, float] | None:
        """(forward_m, turn_rad) left of a decision at this pose; None when it is too old."""
        action = decision.action
        if decision.pose is None:
            return action.forward_m, action.turn_rad
        x_m, y_m, yaw_rad = decision.pose
        moved_m = math.hypot(pose[0] - x_m, pose[1] - y_m)
        turned_rad = math.remainder(pose[2] - yaw_rad, math.tau)
        # What was left when it was asked, and a little for what braking took longer.
        if moved_m > 1.25 * self.config.ahead_m or abs(turned_rad) > 1.25 * self.config.ahead_rad:
            return None
        if action.turn_rad:
            left_rad = action.turn_rad - turned_rad
            share = left_rad / action.turn_rad
            return (0.0, left_rad) if share >= SHORTEST_SHARE else None
        along_m = (pose[0] - x_m) * math.cos(yaw_rad) + (pose[1] - y_m) * math.sin(yaw_rad)
        left_m = action.forward_m - along_m
        return (left_m, 0.0) if left_m >= SHORTEST_SHARE * action.forward_m else None

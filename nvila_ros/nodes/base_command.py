# SPDX-License-Identifier: Apache-2.0
"""The last word on a simulated base's velocity: what is no number or not renewed is zero."""

from __future__ import annotations

import math

from nvila_ros.safety import Velocity

MAX_FORWARD_M_S = 1.0  # what the simulated motors can do
MAX_TURN_RAD_S = 3.0


class BaseCommand:
    """The newest cmd_vel, as long as it counts."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.clear()

    def clear(self) -> None:
        """At rest."""
        self._velocity, self._given_s = Velocity.ZERO, -math.inf

    def give(self, velocity: Velocity, wall_s: float) -> None:
        """The newest cmd_vel; no number is no motion."""
        if not (math.isfinite(velocity.forward_m_s) and math.isfinite(velocity.turn_rad_s)):
            velocity = Velocity.ZERO
        self._velocity, self._given_s = velocity, wall_s

    def at(self, wall_s: float) -> Velocity:
        """Within the motors' limits; zero where it was not renewed in time."""
        if wall_s - self._given_s > self._timeout_s:
            return Velocity.ZERO
        return Velocity(
            max(-MAX_FORWARD_M_S, min(MAX_FORWARD_M_S, self._velocity.forward_m_s)),
            max(-MAX_TURN_RAD_S, min(MAX_TURN_RAD_S, self._velocity.turn_rad_s)),
        )

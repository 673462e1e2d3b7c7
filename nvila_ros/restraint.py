# SPDX-License-Identifier: Apache-2.0
"""Restraint: which of the ten actions are offered next, so that a greedy model cannot loop.

A model that always takes its likeliest answer repeats itself for ever where an answer changes
nothing that it sees: it pushes on against an obstacle, or turns left and right in turn (the known
failure of this kind of model). Odometry shows both, so the answer that led nowhere is not offered
again. STOP always is.
"""

from __future__ import annotations

import math

from nvila_ros.actions import ACTIONS

EVERY_ACTION = frozenset(action.index for action in ACTIONS)
FORWARD = frozenset(action.index for action in ACTIONS if action.kind == "forward")
LEFT = frozenset(action.index for action in ACTIONS if action.kind == "left")
RIGHT = frozenset(action.index for action in ACTIONS if action.kind == "right")

MOVED_M = 0.10  # less than this between two decisions is no way forward
TURNED_RAD = math.radians(5.0)  # more than this gives a new view
FULL_TURN_RAD = 2 * math.pi - math.radians(7.5)


class Restraint:
    """Watches what the motions of one episode came to; three rules, each lifted by moving on.

    1. After a forward action that moved the robot less than 10 cm: no forward, until it has turned.
    2. After a turn: none to the other side, until it has moved.
    3. After a full turn on the spot: no turn, until it has moved (unless forward is barred too).
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins an episode."""
        self._tried: tuple[int, float, float, float] | None = None
        self._is_blocked = False
        self._side: frozenset[int] | None = None  # of the turns since the robot last moved
        self._turned_rad = 0.0  # since it last moved

    def allowed(self, x_m: float, y_m: float, yaw_rad: float) -> frozenset[int]:
        """Indices of the actions to choose from at this pose."""
        self._look_back(x_m, y_m, yaw_rad)
        barred: frozenset[int] = FORWARD if self._is_blocked else frozenset()
        if self._side is not None:
            barred |= (LEFT | RIGHT) - self._side
        if self._turned_rad >= FULL_TURN_RAD and not self._is_blocked:
            barred |= LEFT | RIGHT
        return EVERY_ACTION - barred

    def tried(self, index: int, x_m: float, y_m: float, yaw_rad: float) -> None:
        """Notes that an action was carried out from this pose, or tried until it failed."""
        self._tried = (index, x_m, y_m, yaw_rad)

    def _look_back(self, x_m: float, y_m: float, yaw_rad: float) -> None:
        """What the last action came to."""
        if self._tried is None:
            return
        (index, *start), self._tried = self._tried, None
        moved_m = math.hypot(x_m - start[0], y_m - start[1])
        turned_rad = abs(math.remainder(yaw_rad - start[2], math.tau))
        if moved_m >= MOVED_M:
            self._is_blocked, self._side, self._turned_rad = False, None, 0.0
            return
        if index in FORWARD:
            self._is_blocked = True
        elif index in LEFT | RIGHT:
            self._side = LEFT if index in LEFT else RIGHT
            self._turned_rad += turned_rad
            self._is_blocked &= turned_rad < TURNED_RAD

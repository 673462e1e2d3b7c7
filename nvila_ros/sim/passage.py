# SPDX-License-Identifier: Apache-2.0
"""While a scene is laid out: can the robot still reach every room?"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nvila_ros.sim.geometry import Obstacle, blocked_cells, furniture_obstacle, obstacles
from nvila_ros.sim.scene import Door, Furniture, Room, Scene

_RADIUS_M = 0.27  # robot 0.20 m, its margin, and what the coarse cells may miss
_RESOLUTION_M = 0.10
_REACHABLE_SHARE = 0.85  # of each room's free floor, in one connected area


class PassageCheck:
    """The free floor of a flat, shrinking piece by piece but never cut apart."""

    def __init__(self, rooms: tuple[Room, ...], doors: tuple[Door, ...]) -> None:
        width_m = max(room.x_max_m for room in rooms)
        height_m = max(room.y_max_m for room in rooms)
        self._x_m = np.arange(_RESOLUTION_M / 2, width_m, _RESOLUTION_M)
        self._y_m = np.arange(_RESOLUTION_M / 2, height_m, _RESOLUTION_M)
        self._windows = [
            (
                slice(*np.searchsorted(self._x_m, [room.x_min_m, room.x_max_m])),
                slice(*np.searchsorted(self._y_m, [room.y_min_m, room.y_max_m])),
            )
            for room in rooms
        ]
        self._free = ~self._blocked(obstacles(Scene(0, width_m, height_m, rooms, doors, ())))
        self.passable = self._is_connected(self._free)

    def add(self, piece: Furniture) -> bool:
        """Put the piece down unless it would block a way; says whether it stands."""
        free = self._free & ~self._blocked([furniture_obstacle(piece)])
        if not self._is_connected(free):
            return False
        self._free = free
        return True

    def _blocked(self, solid: list[Obstacle]) -> np.ndarray:
        return blocked_cells(solid, self._x_m, self._y_m, _RADIUS_M)

    def _is_connected(self, free: np.ndarray) -> bool:
        labels, count = ndimage.label(free)
        if count == 0:
            return False
        largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        return all(
            largest[window].sum() >= _REACHABLE_SHARE * max(free[window].sum(), 1)
            for window in self._windows
        )

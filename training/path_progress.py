# SPDX-License-Identifier: Apache-2.0
"""How far along its episode's path a robot is."""

from __future__ import annotations

import numpy as np

from nvila_ros.sim.episodes import Episode


class PathProgress:
    """Where along its episode's path a robot is, and which clause of the instruction that is."""

    def __init__(self, episode: Episode) -> None:
        path = np.asarray(episode.path, float)
        lengths = np.r_[0.0, np.cumsum(np.hypot(*np.diff(path, axis=0).T))]
        self.arc_m = np.linspace(0.0, lengths[-1], max(2, int(lengths[-1] / 0.1)))
        self.points = np.stack([np.interp(self.arc_m, lengths, path[:, k]) for k in (0, 1)], 1)
        self.clause_ends_m = np.array([clause.arc_m for clause in episode.clauses])

    def advance(self, pose: np.ndarray, arc_m: float) -> float:
        """The arc length of the nearest path point not far behind or ahead of the last one."""
        window = (self.arc_m >= arc_m - 0.3) & (self.arc_m <= arc_m + 2.0)
        squared = ((self.points - pose[:2]) ** 2).sum(1)
        squared[~window] = np.inf
        return max(arc_m, float(self.arc_m[squared.argmin()]))

    def clause(self, arc_m: float) -> int:
        """Index of the first clause not completed yet."""
        return int(min((self.clause_ends_m < arc_m - 0.05).sum(), len(self.clause_ends_m) - 1))

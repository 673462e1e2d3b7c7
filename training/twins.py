# SPDX-License-Identifier: Apache-2.0
"""Twins: a robot's frames, labelled once more for another goal of the apartment.

A twin starts where its robot starts, has another goal, and the instruction that the simulator gives
for it; it never drives. Its labels are the teacher's at the robot's poses, so that the same frames
are shown with two instructions and, from where the ways part, two right motions. Nothing is
rendered for it but the views from which its instruction is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.sim.drafts import Draft, drafts_from
from nvila_ros.sim.episodes import Episode, EpisodeMaker, Visible
from nvila_ros.sim.motion import STOP
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.scene import Scene
from nvila_ros.training.path_progress import PathProgress

SHARED_M = 0.5  # ways nearer than this are one
PAST_M = 0.4  # a way that comes so near to a goal leads past it
FARTHER_M = 1.0  # than it started: a twin that its robot has taken so far away from its goal ends
LOST_M = 2.0  # off its way, outside the goal's room, its clauses say nothing any more
LEAST_DIFFERENT = 3  # motions unlike the robot's, or a stop: else a twin is not worth its frames
NUM_TRIES = 2  # a robot's candidates are told in so many rounds


@dataclass
class TwinLabels:
    """The teacher's word for twins under way; arrays over these m twins."""

    rows: np.ndarray  # (m,) int64 rows of the round's prompts
    position: np.ndarray  # (m,) int64 place of each one's robot in the step's labels
    costs: np.ndarray  # (m, 10) float32
    targets: np.ndarray  # (m, 6) float32
    clause: np.ndarray  # (m,) int64


class Twins:
    """The twins of one round of a fleet: T of them, in the order of their robots."""

    def __init__(
        self,
        maker: EpisodeMaker,
        visible: Visible,
        fits: Callable[[str], bool],
        rng: np.random.Generator,
    ) -> None:
        """`fits` says whether a prompt holds an instruction."""
        self._maker, self._visible, self._fits, self._rng = maker, visible, fits, rng
        self._num_robots = 0
        self._begin([], [])

    def _begin(self, robots: list[int], episodes: list[Episode]) -> None:
        count = len(episodes)
        self.episodes, self.robot_of = episodes, np.array(robots, np.int64)
        self._ways = [PathProgress(episode) for episode in episodes]
        self.active = np.ones(count, bool)
        self.num_different = np.zeros(count, np.int64)  # decisions unlike the robot's
        self.stops_apart = np.zeros(count, bool)  # one of the two should stop, the other not

    def start(self, episodes: Sequence[Episode], robots: np.ndarray, num_twins: int) -> None:
        """Chooses up to `num_twins` for each of `robots` (n,), which drive `episodes`."""
        found: dict[int, list[Episode]] = {int(robot): [] for robot in robots}
        if num_twins and len(robots):
            options = self._options(episodes, robots)
            for _ in range(NUM_TRIES):
                tried = [
                    (robot, draft)
                    for robot in found
                    for draft in options[robot][: num_twins - len(found[robot])]
                ]
                for robot, draft in tried:
                    options[robot].remove(draft)
                told = self._maker.tell([d for _, d in tried], self._visible, self._rng)
                for (robot, _), twin in zip(tried, told, strict=True):
                    if twin is not None and self._fits(twin.instruction):
                        found[robot].append(twin)
        self._num_robots = len(episodes)
        pairs = [(robot, twin) for robot, twins in found.items() for twin in twins]
        self._begin([robot for robot, _ in pairs], [twin for _, twin in pairs])

    def _options(self, episodes: Sequence[Episode], robots: np.ndarray) -> dict[int, list[Draft]]:
        """Each robot's routes to other goals, the most telling first.

        That is to goals before which its own way leads past: it has to go on where the twin has to
        stop. Then to those in the room of its own, and then by how much of the way is the same.
        """
        maker, scene = self._maker, self._maker.scene
        rows = [
            (int(robot), index)
            for robot in robots
            for index, goal in enumerate(maker.goals)
            if goal.furniture.id != episodes[robot].goal_furniture_id
        ]
        options: dict[int, list[Draft]] = {int(robot): [] for robot in robots}
        if not rows or maker.planner is None:
            return options
        starts = np.array([episodes[robot].start for robot, _ in rows])
        chosen = np.array([index for _, index in rows])
        for row, draft in drafts_from(scene, maker.planner, maker.goals, starts, chosen):
            options[rows[row][0]].append(draft)
        for robot, drafts in options.items():
            own = PathProgress(episodes[robot])
            room = _room_of(scene, episodes[robot].goal_furniture_id)
            drafts.sort(
                key=lambda draft: (
                    _past_m(own, draft) > PAST_M,
                    draft.furniture.room_id != room,
                    -_shared_m(own, draft),
                )
            )
        return options

    def goal_index(self, planner: Planner | None) -> np.ndarray:
        """(T,) int64 each one's goal among the planner's, which must hold it."""
        if planner is None or not self.episodes:
            return np.zeros(0, np.int64)
        goals = np.array([twin.goal for twin in self.episodes])[:, None]
        return np.linalg.norm(planner.goals - goals, axis=-1).argmin(1).astype(np.int64)

    def append_to(self, robots: np.ndarray) -> np.ndarray:
        """(n,) robots -> rows (n + m,): they, then their twins whose labels still count."""
        twins = np.flatnonzero(self.active & np.isin(self.robot_of, robots))
        return np.concatenate([robots, self._num_robots + twins])

    def labels(
        self,
        rows: np.ndarray,
        poses: np.ndarray,
        arc_m: np.ndarray,
        costs: np.ndarray,
        targets: np.ndarray,
        clause: np.ndarray,
        distance_m: np.ndarray,
    ) -> TwinLabels | None:
        """Of all that is said of `rows` as `append_to` gives them, what counts for twins.

        `arc_m` are reached on the rows' ways, `distance_m` are left to go. Who should stop has
        come to the end, and who is lost has no more labels.
        """
        first = int((rows < self._num_robots).sum())
        twins = rows[first:] - self._num_robots
        if not len(twins):
            return None
        position = np.searchsorted(rows[:first], self.robot_of[twins])
        best = costs.argmin(1)
        places = range(first, len(rows))
        lost = [
            self._is_lost(rows[p] - self._num_robots, poses[p], arc_m[p], clause[p]) for p in places
        ]
        start_m = np.array([self.episodes[twin].geodesic_m for twin in twins])
        kept = ~np.array(lost) & (distance_m[first:] <= start_m + FARTHER_M)
        self.active[twins] = kept & (best[first:] != STOP)
        is_different = kept & (best[first:] != best[position])
        self.num_different[twins] += is_different
        self.stops_apart[twins] |= is_different & (
            (best[first:] == STOP) | (best[position] == STOP)
        )
        parts = (rows, costs, targets, clause)
        row, *rest = (part[first:][kept] for part in parts)
        return TwinLabels(row, position[kept], *rest)

    def is_telling(self) -> np.ndarray:
        """(T,) bool: those that say something else than their robots do."""
        return self.stops_apart | (self.num_different >= LEAST_DIFFERENT)

    def _is_lost(self, twin: int, pose: np.ndarray, arc_m: float, clause: int) -> bool:
        """Far off its way, and not before its last clause in the room where that ends."""
        way, episode = self._ways[twin], self.episodes[twin]
        point = [np.interp(arc_m, way.arc_m, way.points[:, axis]) for axis in (0, 1)]
        if np.linalg.norm(pose[:2] - point) <= LOST_M:
            return False
        is_last = clause == len(episode.clauses) - 1
        return not (is_last and self._is_in_goal_room(episode, pose))

    def _is_in_goal_room(self, episode: Episode, pose: np.ndarray) -> bool:
        room = episode.scene.room_at(float(pose[0]), float(pose[1]))
        return room is not None and room.id == _room_of(episode.scene, episode.goal_furniture_id)


def _room_of(scene: Scene, furniture_id: int) -> int:
    return next(piece.room_id for piece in scene.furniture if piece.id == furniture_id)


def _shared_m(own: PathProgress, draft: Draft) -> float:
    """How far two ways from one start are the same."""
    arc_m = own.arc_m[own.arc_m <= draft.route.length_m]
    apart = np.linalg.norm(draft.route.at(arc_m) - own.points[: len(arc_m)], axis=-1) > SHARED_M
    return float(arc_m[apart.argmax()] if apart.any() else arc_m[-1])


def _past_m(own: PathProgress, draft: Draft) -> float:
    """How near a way comes to another one's goal."""
    return float(np.linalg.norm(own.points - draft.goal, axis=-1).min())

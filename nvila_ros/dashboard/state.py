# SPDX-License-Identifier: Apache-2.0
"""What the dashboard knows: fed by topics on one thread, read by pages on another."""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DECISIONS = 120  # of the chart
MAX_INSTRUCTIONS = 20
MAX_TRAIL_POINTS = 1500  # then every other one goes
TRAIL_STEP_M = 0.05
OVERTAKING_S = 1.0  # between two topics
SILENT_AFTER_S = 3.0  # the navigator speaks on /diagnostics once a second
JUMP_M = 1.0  # odometry that leaps begins a new trail: a new episode, a reset
MAX_SPAN_M = 1e6  # beyond it odometry is no place to draw

Pose = tuple[float, float, float]  # x_m, y_m, yaw_rad


@dataclass(frozen=True)
class Picture:
    """A JPEG and its number, by which a browser asks for it once."""

    jpeg: bytes = b""
    number: int = 0


@dataclass
class Told:
    """An instruction that was heard, and how it ended."""

    text: str
    heard_s: float
    episode: int = 0  # the navigator's number; 0 until it has begun
    result: str = ""
    message: str = ""


@dataclass(frozen=True)
class Health:
    """One status of /diagnostics."""

    level: int  # 0 good, 1 warning, 2 error, 3 stale
    message: str
    values: dict[str, str] = field(default_factory=dict)


class DashboardState:
    """Everything on the page; `version(part)` counts the changes of a part, so that pages send
    only what is new. Every method may be called from any thread.

    Parts: camera, strip, state, decision, trail, plan, motion, health, instructions, episode.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._versions: collections.Counter[str] = collections.Counter()
        self._pictures = {"camera": Picture(), "strip": Picture()}
        self._decisions: collections.deque[dict[str, Any]] = collections.deque(maxlen=MAX_DECISIONS)
        self._instructions: collections.deque[Told] = collections.deque(maxlen=MAX_INSTRUCTIONS)
        self._trail: list[tuple[float, float]] = []
        self._health_s = -math.inf
        self._episode, self._episode_s = 0, -math.inf  # the newest, and when it was first heard
        self._watchers: set[Any] = set()
        self.status: dict[str, Any] = {}  # the last ~/state
        self.plan: tuple[Pose, ...] = ()
        self.pose: Pose | None = None
        self.speed = (0.0, 0.0)  # m/s and rad/s, as odometry measured them
        self.health: dict[str, Health] = {}
        self.episode: dict[str, Any] = {}  # the simulator's; empty on a real robot

    def version(self, part: str) -> int:
        """Grows when the part changes."""
        with self._lock:
            return self._versions[part]

    def picture(self, name: str) -> Picture:
        """The newest 'camera' or 'strip'; KeyError for any other name."""
        return self._pictures[name]

    def hear_picture(self, name: str, jpeg: bytes) -> None:
        """A new picture of that name."""
        with self._lock:
            self._pictures[name] = Picture(jpeg, self._pictures[name].number + 1)
            self._versions[name] += 1

    def hear_status(self, row: dict[str, Any]) -> None:
        """A row of ~/state; a result belongs to the newest instruction of its episode."""
        with self._lock:
            self.status = row
            self._versions["state"] += 1
            self._assign(row)

    def _assign(self, row: dict[str, Any]) -> None:
        """Episode and result to the newest instruction; the ones before it were replaced."""
        number, told = int(row.get("episode") or 0), next(reversed(self._instructions), None)
        if number != self._episode:
            self._episode, self._episode_s = number, self._clock()
            if told is not None and told.episode == 0 and number:
                told.episode = number
                self._versions["instructions"] += 1
        if told and number and told.episode == number and row.get("result") and not told.result:
            told.result, told.message = row["result"], row.get("message", "")
            self._versions["instructions"] += 1

    def hear_decision(self, row: dict[str, Any]) -> None:
        """A row of ~/decision."""
        with self._lock:
            self._decisions.append(row)
            self._versions["decision"] += 1

    def hear_instruction(self, text: str) -> None:
        """Somebody, here or elsewhere, told the robot where to go."""
        with self._lock:
            before = next(reversed(self._instructions), None)
            if before is not None and not before.result:
                before.result = "REPLACED" if before.episode else "NOT TAKEN"
            told = Told(text, self._clock())
            self._instructions.append(told)
            # Topics overtake each other: an episode that began just now is this instruction's.
            taken = before is not None and before.episode == self._episode
            if not taken and self._clock() - self._episode_s < OVERTAKING_S:
                told.episode = self._episode
            self._versions["instructions"] += 1

    def hear_pose(self, pose: Pose, speed: tuple[float, float]) -> None:
        """Odometry; what is no finite number or absurdly far away is left out."""
        if not all(map(math.isfinite, (*pose, *speed))) or max(map(abs, pose)) > MAX_SPAN_M:
            return
        with self._lock:
            shown = (round(speed[0], 2), round(speed[1], 2))
            if shown != self.speed:
                self.speed = shown
                self._versions["motion"] += 1
            place, before = pose[:2], self.pose
            leapt = self._trail and math.dist(place, self._trail[-1]) > JUMP_M
            if leapt:
                self._trail.clear()
            if not self._trail or math.dist(place, self._trail[-1]) >= TRAIL_STEP_M:
                self._trail.append(place)
                if len(self._trail) > MAX_TRAIL_POINTS:
                    self._trail[:] = self._trail[::2]
            if before is None or leapt or math.dist(pose, before) > 0.01:
                self.pose = pose
                self._versions["trail"] += 1

    def hear_plan(self, poses: Sequence[Pose]) -> None:
        """What is left to drive of the planned primitive."""
        with self._lock:
            self.plan = tuple(pose for pose in poses if all(map(math.isfinite, pose)))
            self._versions["plan"] += 1

    def hear_health(self, task: str, health: Health) -> None:
        """One status of the navigator on /diagnostics."""
        with self._lock:
            self._health_s = self._clock()
            if self.health.get(task) != health:
                self.health = {**self.health, task: health}
                self._versions["health"] += 1

    def hear_episode(self, row: dict[str, Any]) -> None:
        """The simulator's ~/episode: another apartment has another trail."""
        with self._lock:
            self.episode = row
            self._trail.clear()
            self.plan = ()
            for part in ("episode", "trail", "plan"):
                self._versions[part] += 1

    @property
    def silent(self) -> bool:
        """Whether the navigator has not been heard for seconds."""
        return self._clock() - self._health_s > SILENT_AFTER_S

    def decisions(self) -> list[dict[str, Any]]:
        """Oldest first."""
        with self._lock:
            return list(self._decisions)

    def instructions(self) -> list[Told]:
        """Newest first."""
        with self._lock:
            return list(reversed(self._instructions))

    def trail(self) -> list[tuple[float, float]]:
        """(x_m, y_m) since the robot was put where it began."""
        with self._lock:
            return list(self._trail)

    def watch(self, client: Any, looks: bool) -> None:
        """A page was opened or closed."""
        with self._lock:
            (self._watchers.add if looks else self._watchers.discard)(client)

    @property
    def num_watchers(self) -> int:
        """Pages that are open; without any no picture is asked for."""
        return len(self._watchers)

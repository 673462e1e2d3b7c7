# SPDX-License-Identifier: Apache-2.0
"""A teacher that looks before it knows: it turns one way until what it is told to find is in view.

The planner knows where every door and goal is. A label that turns a robot to a thing which none of
its frames shows asks the model for what it cannot know, and it learns to turn left and right in
turn (models/nano/README.md, "What limits it"). Where the frames of a decision do not show the next
door or the goal, and the planner would turn or stop, this teacher turns on where it stands: to the
side to which it is turning already, or was just told to turn, else to the open side of the room. It
keeps to that side until the picture before it shows the thing, and knows it from then on while it
stands there. A turn that the instruction names is known without looking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.sim.episodes import Episode
from nvila_ros.sim.motion import STOP, TURN_RAD, wrap
from nvila_ros.sim.scene import Door, Furniture, Scene
from nvila_ros.sim.sight import Sight

MIN_SHARE = 0.003  # of the picture for a thing to count as seen, as in labelled views
AT_DOOR_M = 1.0  # too near for its frame to be in the picture
MAX_SEARCHES = 7  # turns of 45 degrees on one spot: with what is in view at first, a turn around
SPOT_M = 0.10  # nearer than this is the same spot
LOOKED_M = (
    1.5  # as far around a spot as looking from there counts: no second turn around after a step
)
LEAST_GUESS_RAD = math.radians(20)  # a smaller turn corrects a motion; it is no guess at a side
SEARCH_TURN_RAD = math.radians(45)
OTHERWISE_COST = 6.0  # of motions that do not turn to the side, in units as the planner's
PER_MISSING_TURN_COST = 0.4  # of 15 degrees less


@dataclass
class _Spot:
    """Where a robot stands and looks for a thing; after that the planner's word counts."""

    x_m: float
    y_m: float
    side: float = 0.0  # 1 for left
    num_searches: int = 0
    is_found: bool = False


class SearchingTeacher:
    """What the robots of a fleet have seen, and the side to which each looks around."""

    def __init__(self, scene: Scene, sight: Sight) -> None:
        self._scene, self._sight = scene, sight
        self._things: dict[str, Door | Furniture] = {door.key: door for door in scene.doors}
        self._things |= {piece.key: piece for piece in scene.furniture}
        self.start([], 0)

    def start(
        self, episodes: Sequence[Episode], max_frames: int, robot_of: np.ndarray | None = None
    ) -> None:
        """Row i is told episode i and sees what robot `robot_of[i]` does, by default robot i.

        Nothing has been seen yet.
        """
        self._episodes = episodes
        self._robot_of = list(range(len(episodes))) if robot_of is None else robot_of.tolist()
        self._poses = np.zeros((len(episodes), max_frames, 3))  # of robots
        self._seen: dict[tuple[int, int, str], bool] = {}  # robot, frame, key
        self._spots: dict[tuple[int, str], _Spot] = {}  # row, key

    def saw(self, robots: np.ndarray, frames: np.ndarray, poses: np.ndarray) -> None:
        """Frames (n,) of robots (n,) were taken at poses (n, 3)."""
        self._poses[robots, frames] = poses

    def sides(
        self,
        rows: np.ndarray,
        clauses: np.ndarray,
        shown: np.ndarray,
        best: np.ndarray,
    ) -> np.ndarray:
        """(n,) 1 or -1 where a row should look around to the left or right, 0 where it knows.

        `clauses` (n,) are under way, `shown` (n, T) frames that the decisions show (-1: none),
        `best` (n,) the planner's motions.
        """
        each = zip(rows.tolist(), clauses.tolist(), shown.tolist(), best.tolist(), strict=True)
        return np.array([self._side(*one) for one in each], float)

    def sightings(self, rows: np.ndarray, clauses: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(n,) rows, clauses under way and current frames -> (n, 3) float32.

        Whether the next door or the goal is in the picture, and if so sine and cosine of its
        bearing from the heading (left is positive); else zeros.
        """
        found = np.zeros((len(rows), 3), np.float32)
        each = zip(rows.tolist(), clauses.tolist(), frames.tolist(), strict=True)
        for place, (row, clause, frame) in enumerate(each):
            key, robot = self._next_thing(row, clause), self._robot_of[row]
            if key is not None and self._sees(robot, frame, key):
                thing, (x_m, y_m, yaw_rad) = self._things[key], self._poses[robot, frame]
                bearing_rad = math.atan2(thing.y_m - y_m, thing.x_m - x_m) - yaw_rad
                found[place] = 1.0, math.sin(bearing_rad), math.cos(bearing_rad)
        return found

    def _side(self, row: int, clause: int, shown: list[int], best: int) -> float:
        is_told = self._episodes[row].clauses[clause].kind == "turn"  # to which side
        robot, key = self._robot_of[row], self._next_thing(row, clause)
        pose = self._poses[robot, shown[-1]]
        # Driving on shows more by itself.
        guesses = best == STOP or abs(TURN_RAD[best]) > LEAST_GUESS_RAD
        if key is None or is_told or not guesses or self._is_elsewhere(pose, key):
            return 0.0
        spot = self._spot(row, key, pose)
        # Old frames come and go among the sampled ones: who has begun to look trusts the newest.
        frames = shown[-1:] if spot.num_searches else shown
        spot.is_found = spot.is_found or self._is_known(robot, frames, key)
        if spot.is_found or spot.num_searches >= MAX_SEARCHES:
            return 0.0
        spot.num_searches += 1
        spot.side = (
            spot.side
            or self._last_turn(robot, shown[-1])
            or self._told_turn(row, clause)
            or self._open_side(pose)
        )
        return spot.side

    def _spot(self, row: int, key: str, pose: np.ndarray) -> _Spot:
        """Where the robot looks for the thing: anew once it has left its last spot."""
        spot, (x_m, y_m) = self._spots.get((row, key)), map(float, pose[:2])
        if spot is not None:
            moved_m = math.hypot(x_m - spot.x_m, y_m - spot.y_m)
            if moved_m < (LOOKED_M if spot.num_searches else SPOT_M):
                return spot
        spot = self._spots[row, key] = _Spot(x_m, y_m)
        return spot

    def _last_turn(self, robot: int, frame: int) -> float:
        """The side to which the robot turned on this spot just before the frame, 0 for none."""
        if frame < 1:
            return 0.0
        before, now = self._poses[robot, frame - 1], self._poses[robot, frame]
        turn_rad = float(wrap(now[2] - before[2]))
        is_here = math.hypot(*(now[:2] - before[:2])) < SPOT_M
        return math.copysign(1.0, turn_rad) if is_here and abs(turn_rad) > 1e-6 else 0.0

    def _told_turn(self, row: int, clause: int) -> float:
        """The side of the turn that the instruction named just before, 0 where it named none."""
        before = self._episodes[row].clauses[clause - 1] if clause else None
        words = before.text.replace(",", "").split() if before and before.kind == "turn" else []
        return 1.0 if "left" in words else -1.0 if "right" in words else 0.0

    def _next_thing(self, row: int, clause: int) -> str | None:
        """The landmark of the instruction's next door or goal."""
        coming = self._episodes[row].clauses[clause:]
        return next((step.landmark for step in coming if step.kind in ("door", "goal")), None)

    def _is_elsewhere(self, pose: np.ndarray, key: str) -> bool:
        """The robot is in a room to which the thing does not belong."""
        room, thing = self._scene.room_at(float(pose[0]), float(pose[1])), self._things[key]
        rooms = thing.room_ids if isinstance(thing, Door) else (thing.room_id,)
        return room is None or room.id not in rooms

    def _is_known(self, robot: int, shown: list[int], key: str) -> bool:
        thing, pose = self._things[key], self._poses[robot, shown[-1]]
        at_door_m = math.hypot(thing.x_m - pose[0], thing.y_m - pose[1])
        if isinstance(thing, Door) and at_door_m < AT_DOOR_M:
            return True
        return any(self._sees(robot, frame, key) for frame in set(shown) if frame >= 0)

    def _sees(self, robot: int, frame: int, key: str) -> bool:
        place = (robot, frame, key)
        if place not in self._seen:
            self._seen[place] = self._sight.share(self._poses[robot, frame], key) >= MIN_SHARE
        return self._seen[place]

    def _open_side(self, pose: np.ndarray) -> float:
        """Towards the middle of the room: the robot sees on which side its walls are near."""
        room = self._scene.room_at(float(pose[0]), float(pose[1]))
        if room is None:
            return 1.0
        x_m, y_m = room.centre - pose[:2]
        return 1.0 if wrap(np.arctan2(y_m, x_m) - pose[2]) >= 0 else -1.0


def search_costs(sides: np.ndarray) -> np.ndarray:
    """(n,) 1 or -1 -> (n, 10) costs that prefer the largest turn to that side."""
    turns_rad = sides[:, None] * TURN_RAD
    missing = (SEARCH_TURN_RAD - turns_rad) / math.radians(15)
    return np.where(turns_rad > 0, PER_MISSING_TURN_COST * missing, OTHERWISE_COST)

# SPDX-License-Identifier: Apache-2.0
"""What happens along a path, before any words: doors crossed, bends taken, things passed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nvila_ros.sim.scene import Door, Furniture, Scene

SPACING_M = 0.10  # of the samples along a route
SIGHTING_SPACING_M = 0.70  # of the camera poses that are checked for landmarks
LOOK_M = 0.80  # a camera on the way faces the point this far ahead
CHORD_M = 0.80  # directions before and after a bend are taken over this length
INNER_BEND_RAD = math.radians(50)
DOOR_BEND_RAD = math.radians(40)
DOOR_BEND_REACH_M = 1.7  # a bend this soon after a door belongs to the door
BEND_APART_M = 1.2
PASS_DISTANCE_M = 1.3  # between the route and the side of a thing that is passed
NEAR_BEND_M = 1.6


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The route goes through a door into a room."""

    arc_m: float
    door: Door
    room_id: int
    direction_rad: float  # across the wall


@dataclasses.dataclass(frozen=True)
class Bend:
    """The route changes direction; positive is to the left."""

    arc_m: float
    angle_rad: float
    after_door: bool = False


@dataclasses.dataclass(frozen=True)
class Passing:
    """The route leads past a piece of furniture; `left` is its side."""

    arc_m: float
    furniture: Furniture
    left: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Route:
    """A path sampled every 0.1 m in a scene."""

    scene: Scene
    points: np.ndarray  # (M, 2)
    arc_m: np.ndarray  # (M,)
    room_ids: np.ndarray  # (M,) int, -1 outside all rooms

    @classmethod
    def from_path(cls, scene: Scene, path: np.ndarray) -> Route:
        """(P, 2) polyline -> route."""
        path = np.asarray(path, dtype=np.float64)
        cumulative_m = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
        arc_m = np.linspace(0, cumulative_m[-1], max(2, round(cumulative_m[-1] / SPACING_M) + 1))
        points = np.stack([np.interp(arc_m, cumulative_m, path[:, k]) for k in (0, 1)], axis=-1)
        room_ids = np.full(len(arc_m), -1)
        for room in scene.rooms:
            x, y = points.T
            inside = (x > room.x_min_m) & (x < room.x_max_m)
            room_ids[inside & (y > room.y_min_m) & (y < room.y_max_m)] = room.id
        return cls(scene, points, arc_m, room_ids)

    @property
    def length_m(self) -> float:
        """Arc length of the whole route."""
        return float(self.arc_m[-1])

    def at(self, arc_m: np.ndarray | float) -> np.ndarray:
        """Points (..., 2) at arc lengths, clipped to the ends."""
        return np.stack([np.interp(arc_m, self.arc_m, self.points[:, k]) for k in (0, 1)], axis=-1)

    def direction_rad(self, start_m: np.ndarray | float, end_m: np.ndarray | float) -> np.ndarray:
        """Direction of the chord between two arc lengths."""
        chord = self.at(end_m) - self.at(start_m)
        return np.arctan2(chord[..., 1], chord[..., 0])

    def camera_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Arc lengths (K,) and poses (K, 3) from which a robot on the route looks along it."""
        count = max(2, math.ceil(self.length_m / SIGHTING_SPACING_M) + 1)
        arc_m = np.linspace(0, self.length_m, count)
        from_m = np.minimum(arc_m, self.length_m - LOOK_M / 2)  # the last pose keeps the heading
        yaw_rad = self.direction_rad(from_m, from_m + LOOK_M)
        return arc_m, np.concatenate([self.at(arc_m), yaw_rad[:, None]], axis=-1)

    def crossings(self) -> list[Crossing]:
        """Doors in order; going in and straight out again through one door is no crossing."""
        found: list[Crossing] = []
        inside = np.flatnonzero(self.room_ids >= 0)
        changes = np.flatnonzero(np.diff(self.room_ids[inside]))
        for before, after in zip(inside[changes], inside[changes + 1], strict=True):
            rooms = {int(self.room_ids[before]), int(self.room_ids[after])}
            doors = [door for door in self.scene.doors if set(door.room_ids) == rooms]
            if not doors:
                continue
            offset = [math.dist(self.points[after], (door.x_m, door.y_m)) for door in doors]
            door = doors[int(np.argmin(offset))]
            if found and found[-1].door.id == door.id:
                found.pop()
                continue
            step = self.points[after] - self.points[before]
            across = door.across * np.sign(step @ door.across)
            direction_rad = math.atan2(across[1], across[0])
            arc_m, room_id = float(self.arc_m[after]), int(self.room_ids[after])
            found.append(Crossing(arc_m, door, room_id, direction_rad))
        return found

    def bends(self, crossings: list[Crossing]) -> list[Bend]:
        """Right after doors, and inside rooms; none where the route starts or ends."""
        found = []
        for crossing in crossings:
            start_m = crossing.arc_m + 0.5
            if self.length_m - start_m < 0.6:
                continue
            away_rad = self.direction_rad(start_m, crossing.arc_m + DOOR_BEND_REACH_M)
            angle_rad = _wrap(away_rad - crossing.direction_rad)
            if abs(angle_rad) > DOOR_BEND_RAD:
                found.append(Bend(crossing.arc_m + 0.9, angle_rad, after_door=True))
        before_rad = self.direction_rad(self.arc_m - CHORD_M, self.arc_m)
        after_rad = self.direction_rad(self.arc_m, self.arc_m + CHORD_M)
        angle_rad = (after_rad - before_rad + np.pi) % (2 * np.pi) - np.pi
        open_to_bend = (self.arc_m > CHORD_M) & (self.arc_m < self.length_m - CHORD_M)
        for crossing in crossings:
            since_m = self.arc_m - crossing.arc_m
            open_to_bend &= (since_m < -0.3) | (since_m > DOOR_BEND_REACH_M)
        sharpness_rad = np.where(open_to_bend, np.abs(angle_rad), 0)
        while sharpness_rad.max() > INNER_BEND_RAD:
            index = int(sharpness_rad.argmax())
            found.append(Bend(float(self.arc_m[index]), float(angle_rad[index])))
            sharpness_rad[np.abs(self.arc_m - self.arc_m[index]) < BEND_APART_M] = 0
        return sorted(found, key=lambda bend: bend.arc_m)

    def passings(self, candidates: list[Furniture]) -> list[Passing]:
        """Where the route runs past the middle of a piece, near and clearly to one side."""
        found = []
        for piece in candidates:
            offset = np.array([piece.x_m, piece.y_m]) - self.points
            index = int(np.hypot(*offset.T).argmin())
            arc_m = float(self.arc_m[index])
            if self.room_ids[index] != piece.room_id or not 1 < arc_m < self.length_m - 1:
                continue
            heading_rad = self.direction_rad(arc_m - 0.4, arc_m + 0.4)
            ahead = offset[index] @ (math.cos(heading_rad), math.sin(heading_rad))
            aside = offset[index] @ (-math.sin(heading_rad), math.cos(heading_rad))
            gap_m = abs(aside) - min(piece.depth_m, piece.width_m) / 2
            if gap_m < PASS_DISTANCE_M and abs(aside) > 0.35 and abs(ahead) < 0.4 * abs(aside):
                found.append(Passing(arc_m, piece, bool(aside > 0)))
        return sorted(found, key=lambda passing: passing.arc_m)


def _wrap(angle_rad: float | np.ndarray) -> float:
    return float((angle_rad + math.pi) % (2 * math.pi) - math.pi)

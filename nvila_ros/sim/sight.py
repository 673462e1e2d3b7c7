# SPDX-License-Identifier: Apache-2.0
"""Whether a landmark is in a camera's view, by rays: no picture is drawn."""

from __future__ import annotations

import itertools
import math

import numpy as np

from nvila_ros.sim.paint import GROUP_CEILING, GROUP_VISIBLE
from nvila_ros.sim.scene import DOOR_HEIGHT_M, DOOR_WIDTH_M, WALL_THICKNESS_M, Door, Furniture
from nvila_ros.sim.world import CAMERA_FORWARD_M, World

import mujoco  # isort: skip

PIECE_HEIGHTS = (0.25, 0.6, 0.95)  # shares of a piece's height at which its points lie
DOOR_HEIGHTS_M = (0.3, 1.0, 1.7)


class Sight:
    """What the camera of a world sees; its pictures are square."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._points = {piece.key: _points_of_piece(piece) for piece in world.scene.furniture}
        self._points |= {door.key: _points_of_door(door) for door in world.scene.doors}
        self._area_m2 = {
            piece.key: piece.height_m * (piece.width_m + piece.depth_m) / 2
            + 0.3 * piece.width_m * piece.depth_m  # seen from above
            for piece in world.scene.furniture
        }
        self._area_m2 |= {door.key: DOOR_WIDTH_M * DOOR_HEIGHT_M for door in world.scene.doors}
        self._index = {key: index for index, key in enumerate(world.landmarks)}
        self._groups = np.zeros(mujoco.mjNGROUP, np.uint8)
        self._groups[[GROUP_VISIBLE, GROUP_CEILING]] = 1  # what pictures show

    def share(self, pose: np.ndarray, key: str) -> float:
        """About the share of the picture that a landmark fills, seen by a robot at a pose (3,)."""
        look, points = self._world.appearance, self._points[key]
        heading = np.array([math.cos(pose[2]), math.sin(pose[2])])
        camera = np.array([*(pose[:2] + CAMERA_FORWARD_M * heading), look.camera_height_m])
        offsets = points - camera
        ahead = offsets[:, :2] @ heading
        beside = offsets[:, :2] @ np.array([-heading[1], heading[0]])
        level, climb = math.cos(look.pitch_rad), math.sin(look.pitch_rad)
        depth = ahead * level + offsets[:, 2] * climb
        above = offsets[:, 2] * level - ahead * climb
        reach = math.tan(look.hfov_rad / 2) * depth  # half of the picture's side, there
        inside = (depth > 0) & (np.abs(beside) < reach) & (np.abs(above) < reach)
        if not inside.any():
            return 0.0
        seen = self._num_reached(camera, offsets[inside], key) / len(points)
        return float(min(1.0, seen * self._area_m2[key] / (2 * reach[inside].mean()) ** 2))

    def _num_reached(self, camera: np.ndarray, offsets: np.ndarray, key: str) -> int:
        """Points with nothing but the landmark itself before them."""
        world, count = self._world, len(offsets)
        geoms, shares = np.full(count, -1, np.int32), np.full(count, -1.0)
        mujoco.mj_multiRay(
            world.model,
            world.data,
            camera,
            offsets.ravel(),
            self._groups,
            1,
            -1,
            geoms,
            shares,
            None,
            count,
            mujoco.mjMAXVAL,
        )
        is_free = (shares < 0) | (shares >= 1)  # in lengths of the offset
        own = self._index[key] == world.landmark_of_geom[geoms]
        return int((is_free | own).sum())


def _points_of_piece(piece: Furniture) -> np.ndarray:
    """(15, 3): corners and centre at three heights."""
    outline = np.concatenate([piece.corners(-0.05), [[piece.x_m, piece.y_m]]])
    heights_m = piece.height_m * np.array(PIECE_HEIGHTS)
    return np.array(
        [(*point, height_m) for point, height_m in itertools.product(outline, heights_m)]
    )


def _points_of_door(door: Door) -> np.ndarray:
    """(14, 3): both posts at three heights and the lintel, on both sides of the wall."""
    posts = [(side * (DOOR_WIDTH_M / 2 + 0.05), z_m) for side in (-1, 1) for z_m in DOOR_HEIGHTS_M]
    points = []
    for side, (along_m, height_m) in itertools.product(
        (-1, 1), [*posts, (0.0, DOOR_HEIGHT_M + 0.05)]
    ):
        across_m = side * (WALL_THICKNESS_M / 2 + 0.02)
        place = np.array([door.x_m, door.y_m]) + along_m * door.along + across_m * door.across
        points.append((*place, height_m))
    return np.array(points)

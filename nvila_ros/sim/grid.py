# SPDX-License-Identifier: Apache-2.0
"""Floor plan of a scene as cells: where the robot fits and how far the next obstacle is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from nvila_ros.errors import SceneError
from nvila_ros.sim.geometry import Obstacle, obstacles
from nvila_ros.sim.scene import Scene

SAFETY_MARGIN_M = 0.02  # free cells keep this much more than the robot's radius from every obstacle
BORDER_M = 0.2  # frame of cells around the apartment, so that neighbours of a free cell exist
RIM_CELLS = 3  # never free: from a free cell one may look this far in every direction
MAX_CLEARANCE_M = 1.2  # farther obstacles do not matter to any motion


@dataclasses.dataclass(frozen=True, eq=False)
class OccupancyGrid:
    """Cells of `resolution_m`; index (i, j) grows with (x, y); arrays are (nx, ny)."""

    resolution_m: float
    origin_m: tuple[float, float]  # x, y of the lower corner of cell (0, 0)
    robot_radius_m: float
    occupied: np.ndarray  # bool: wall, door leaf or solid furniture
    free: np.ndarray  # bool: the robot's centre fits; the largest connected component only
    clearance_m: (
        np.ndarray
    )  # float32: distance from the cell's centre to the next obstacle, at most 1.2 m
    nearest_free: np.ndarray  # int32: flat index of the nearest free cell
    to_free_m: np.ndarray  # float32: distance to it, 0 in free cells

    @classmethod
    def from_scene(
        cls, scene: Scene, resolution_m: float = 0.05, robot_radius_m: float = 0.20
    ) -> OccupancyGrid:
        """Clearance from the exact rectangles of walls, doors and solid furniture."""
        x_m, y_m = (
            np.arange(-BORDER_M + resolution_m / 2, size_m + BORDER_M, resolution_m)
            for size_m in (scene.width_m, scene.height_m)
        )
        clearance_m = np.full((len(x_m), len(y_m)), MAX_CLEARANCE_M, dtype=np.float32)
        for obstacle in obstacles(scene):
            _lower_clearance(clearance_m, obstacle, x_m, y_m)
        return cls._from_clearance(
            clearance_m, resolution_m, (-BORDER_M, -BORDER_M), robot_radius_m
        )

    @classmethod
    def from_occupied(
        cls,
        occupied: np.ndarray,
        resolution_m: float = 0.05,
        origin_m: tuple[float, float] = (0.0, 0.0),
        robot_radius_m: float = 0.20,
    ) -> OccupancyGrid:
        """Grid of a (nx, ny) bool map; the outermost cells count as occupied."""
        occupied = occupied.copy()
        occupied[[0, -1], :] = True
        occupied[:, [0, -1]] = True
        centre_distance = ndimage.distance_transform_edt(~occupied)
        clearance_m = np.maximum(centre_distance - 0.5, 0).astype(np.float32) * resolution_m
        clearance_m = np.minimum(clearance_m, MAX_CLEARANCE_M)
        return cls._from_clearance(clearance_m, resolution_m, origin_m, robot_radius_m)

    @classmethod
    def _from_clearance(
        cls,
        clearance_m: np.ndarray,
        resolution_m: float,
        origin_m: tuple[float, float],
        robot_radius_m: float,
    ) -> OccupancyGrid:
        fits = clearance_m > robot_radius_m + SAFETY_MARGIN_M
        rim = np.ones_like(fits)
        rim[RIM_CELLS:-RIM_CELLS, RIM_CELLS:-RIM_CELLS] = False
        fits &= ~rim
        labels, num_components = ndimage.label(fits)
        if num_components == 0:
            raise SceneError(
                f"no free cell for a robot of radius {robot_radius_m} m in a map of "
                f"{fits.shape} cells; make the scene larger or the robot smaller"
            )
        free = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
        to_free, nearest = ndimage.distance_transform_edt(~free, return_indices=True)
        return cls(
            resolution_m=resolution_m,
            origin_m=origin_m,
            robot_radius_m=robot_radius_m,
            occupied=clearance_m <= 0,
            free=free,
            clearance_m=clearance_m,
            nearest_free=np.ravel_multi_index(tuple(nearest), free.shape).astype(np.int32),
            to_free_m=to_free.astype(np.float32) * resolution_m,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells along x and y."""
        return self.free.shape

    def cell(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2+) metres -> (..., 2) int cell indices, clipped to the map."""
        cells = np.floor((np.asarray(xy)[..., :2] - self.origin_m) / self.resolution_m)
        return np.clip(cells.astype(np.int64), 0, np.array(self.shape) - 1)

    def centre(self, ij: np.ndarray) -> np.ndarray:
        """(..., 2) cell indices -> (..., 2) metres of the cells' centres."""
        return (np.asarray(ij) + 0.5) * self.resolution_m + self.origin_m

    def flat(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2+) metres -> (...) flat cell index, clipped to the map."""
        cells = self.cell(xy)
        return cells[..., 0] * self.shape[1] + cells[..., 1]

    def is_free(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2+) metres -> (...) bool: the robot's centre may be there."""
        return self.free.ravel()[self.flat(xy)]

    def clearance_at(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2+) metres -> (...) metres to the nearest obstacle."""
        return self.clearance_m.ravel()[self.flat(xy)]

    def snap(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2+) metres -> (..., 2): unchanged where free, else the nearest free centre."""
        xy = np.asarray(xy, dtype=np.float64)[..., :2]
        flat = self.flat(xy)
        nearest = self.nearest_free.ravel()[flat]
        centres = self.centre(np.stack(np.unravel_index(nearest, self.shape), axis=-1))
        return np.where((nearest == flat)[..., None], xy, centres)


def _lower_clearance(
    clearance_m: np.ndarray, obstacle: Obstacle, x_m: np.ndarray, y_m: np.ndarray
) -> None:
    """Take an obstacle into account: the distance to its rectangle, where it is the nearest."""
    low, high = obstacle.corners(MAX_CLEARANCE_M).min(0), obstacle.corners(MAX_CLEARANCE_M).max(0)
    i = slice(*np.searchsorted(x_m, [low[0], high[0]]))
    j = slice(*np.searchsorted(y_m, [low[1], high[1]]))
    dx = (x_m[i, None] - obstacle.x_m).astype(np.float32)
    dy = (y_m[None, j] - obstacle.y_m).astype(np.float32)
    cos, sin = math.cos(obstacle.yaw_rad), math.sin(obstacle.yaw_rad)
    beyond_depth = np.maximum(abs(dx * cos + dy * sin) - obstacle.half_depth_m, 0)
    beyond_width = np.maximum(abs(dy * cos - dx * sin) - obstacle.half_width_m, 0)
    distance_m = np.sqrt(beyond_depth**2 + beyond_width**2)
    np.minimum(clearance_m[i, j], distance_m, out=clearance_m[i, j])

# SPDX-License-Identifier: Apache-2.0
"""Pictures of an apartment for people: views of its rooms and a plan from above."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nvila_ros.sim.geometry import obstacles
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.scene import (
    COLOURS,
    DOOR_WIDTH_M,
    WALL_THICKNESS_M,
    Room,
    rectangle_corners,
)
from nvila_ros.sim.world import World

_NUM_CANDIDATES = 200  # poses tried for each room view
_CANDIDATE_SIZE_PX = 48
_CUT_WALL_RGB = (0.22, 0.23, 0.26)


def room_poses(world: World, seed: int = 0) -> dict[int, np.ndarray]:
    """Room id -> the pose inside it from which most doors and furniture are seen."""
    rng = np.random.default_rng([seed, 4])
    renderer = Renderer(world, _CANDIDATE_SIZE_PX, _CANDIDATE_SIZE_PX, batch=16)
    best = {}
    try:
        for room in world.scene.rooms:
            poses = _candidates(world, room, rng)
            scores = [_interest(shares) for shares in renderer.visible(poses, 0.005)]
            best[room.id] = poses[int(np.argmax(scores))]
    finally:
        renderer.close()
    return best


def _candidates(world: World, room: Room, rng: np.random.Generator) -> np.ndarray:
    """(N, 3) free poses near the walls that look inwards; the room's middle if there are none."""
    low = np.array([room.x_min_m, room.y_min_m]) + 0.35
    high = np.array([room.x_max_m, room.y_max_m]) - 0.35
    points = rng.uniform(low, high, (_NUM_CANDIDATES, 2))
    inwards = room.centre - points
    yaw = np.arctan2(inwards[:, 1], inwards[:, 0]) + rng.uniform(-0.5, 0.5, _NUM_CANDIDATES)
    poses = np.column_stack([points, yaw])
    free = [pose for pose in poses if not world.collides(pose)][:32]
    return np.array(free or [(*room.centre, 0.0)])


def _interest(shares: dict[str, float]) -> float:
    """Many landmarks, none of them filling the picture."""
    landmarks = [share for key, share in shares.items() if ":" in key]
    return sum(min(share, 0.08) for share in landmarks) - 2 * max([0.0, *landmarks])


def room_views(world: World, width_px: int = 640, height_px: int = 480) -> dict[str, np.ndarray]:
    """'0_living_room' -> (H, W, 3) uint8 with shadows, one view for each room."""
    poses = room_poses(world, world.scene.seed)
    renderer = Renderer(world, width_px, height_px, antialias=4, shadows=True)
    try:
        return {
            f"{room.id}_{room.kind.replace(' ', '_')}": renderer.render(poses[room.id])
            for room in world.scene.rooms
        }
    finally:
        renderer.close()


def top_view(world: World, pixels_per_metre: int = 60, antialias: int = 4) -> np.ndarray:
    """(H, W, 3) uint8 plan with the ceiling removed and the walls cut: x to the right, y up."""
    width_px = round(world.scene.width_m * pixels_per_metre)
    height_px = round(world.scene.height_m * pixels_per_metre)
    renderer = Renderer(world, width_px, height_px, antialias=antialias)
    try:
        picture = renderer.render_top()
    finally:
        renderer.close()
    return _cut_walls(world, picture, pixels_per_metre)


def _cut_walls(world: World, picture: np.ndarray, pixels_per_metre: int) -> np.ndarray:
    """Walls in dark gray as in a floor plan, and every doorway in the colour of its door."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)

    def fill(corners: np.ndarray, rgb: tuple[float, float, float]) -> None:
        outline = top_view_pixel(world, corners, pixels_per_metre).ravel().tolist()
        draw.polygon(outline, fill=tuple(round(255 * value) for value in rgb))

    for obstacle in obstacles(world.scene):
        if obstacle.kind == "wall":
            fill(obstacle.corners(), _CUT_WALL_RGB)
    for door in world.scene.doors:
        half = np.abs(door.along) * DOOR_WIDTH_M / 2 + np.abs(door.across) * WALL_THICKNESS_M / 2
        fill(rectangle_corners(door.x_m, door.y_m, 0.0, *half), COLOURS[door.colour])
    return np.asarray(image)


def top_view_pixel(world: World, points: np.ndarray, pixels_per_metre: int = 60) -> np.ndarray:
    """(N, 2) metres -> (N, 2) column and row in the picture of `top_view`."""
    points = np.asarray(points, float)
    column = points[:, 0] * pixels_per_metre
    row = (world.scene.height_m - points[:, 1]) * pixels_per_metre
    return np.stack([column, row], 1)


def save_pictures(world: World, folder: Path) -> list[Path]:
    """Write every room view and the plan as PNG; the files in the order written."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {**room_views(world), "top": top_view(world)}
    paths = []
    for name, picture in named.items():
        path = folder / f"seed{world.scene.seed}_{name}.png"
        Image.fromarray(picture).save(path)
        paths.append(path)
    return paths

# SPDX-License-Identifier: Apache-2.0
"""What the robot's camera sees: colour and landmark pictures, many poses in one draw."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.errors import SceneError
from nvila_ros.sim import gl
from nvila_ros.sim.paint import GROUP_CEILING, GROUP_HIDDEN, GROUP_VISIBLE
from nvila_ros.sim.world import CAMERA_FORWARD_M, World

import mujoco  # isort: skip

MAX_BUFFER_PX = 8192
_CULLING_MARGIN_RAD = math.radians(0.5)
_TOP_CAMERA_HEIGHT_M = 12.0


class Renderer:
    """Draws a world into one offscreen buffer, tiled; each process makes its own."""

    def __init__(
        self,
        world: World,
        width_px: int = 224,
        height_px: int = 224,
        batch: int = 1,
        antialias: int = 0,
        shadows: bool = False,
    ) -> None:
        self.world = world
        self.width_px, self.height_px = width_px, height_px
        self._columns = max(1, min(math.ceil(math.sqrt(batch)), MAX_BUFFER_PX // width_px))
        self._rows = math.ceil(batch / self._columns)
        if self._rows * height_px > MAX_BUFFER_PX:
            raise SceneError(
                f"a batch of {batch} views of {width_px}x{height_px} px exceeds the buffer; "
                "lower batch: render_batch splits longer lists by itself"
            )
        self._capacity = self._columns * self._rows
        self._shadows = shadows
        model = world.model
        self._configure(model, antialias)
        gl.current_context()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 50)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[GROUP_VISIBLE] = self._options.geomgroup[GROUP_CEILING] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.distance = 1.0
        self._pixels = np.empty((self._rows * height_px, self._columns * width_px, 3), np.uint8)
        self._group = model.geom_group.copy()
        self._drawn = (self._group == GROUP_VISIBLE) | (self._group == GROUP_CEILING)
        self._centre = world.data.geom_xpos[:, :2].copy()
        self._radius = model.geom_rbound.copy()
        self._room_light = np.array(
            [model.light(i).name.startswith("room") for i in range(model.nlight)]
        )

    def _configure(self, model: mujoco.MjModel, antialias: int) -> None:
        """Buffer size and mesh detail are read when the context is made."""
        model.vis.global_.offwidth = self._columns * self.width_px
        model.vis.global_.offheight = self._rows * self.height_px
        quality = model.vis.quality
        quality.offsamples = antialias
        quality.shadowsize = 2048
        quality.numslices, quality.numstacks = 12, 8
        quality.numquads = 4 if self._shadows else 1  # directional light needs no finer vertices

    def render(self, pose: np.ndarray) -> np.ndarray:
        """(3,) pose -> (H, W, 3) uint8, a copy."""
        return self.render_batch(np.asarray(pose, float)[None])[0]

    def render_batch(self, poses: np.ndarray) -> np.ndarray:
        """(N, 3) poses -> (N, H, W, 3) uint8."""
        poses = np.asarray(poses, float).reshape(-1, 3)
        chunks = [
            self._draw(poses[start : start + self._capacity])
            for start in range(0, len(poses), self._capacity)
        ]
        return chunks[0] if len(chunks) == 1 else _join(chunks, self._shape(), np.uint8)

    def segment_batch(self, poses: np.ndarray) -> np.ndarray:
        """(N, 3) poses -> (N, H, W) int16 index into `world.landmarks`."""
        poses = np.asarray(poses, float).reshape(-1, 3)
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        try:
            chunks = []
            for start in range(0, len(poses), self._capacity):
                tables: list[np.ndarray] = []
                pixels = self._draw(poses[start : start + self._capacity], tables)
                for view, table in zip(pixels, tables, strict=True):
                    drawn = view[..., 0].astype(np.int32) + 256 * view[..., 1].astype(np.int32)
                    chunks.append(table[drawn][None])
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        return _join(chunks, self._shape()[:2], np.int16)

    def visible(self, poses: np.ndarray, minimum_share: float = 0.0) -> list[dict[str, float]]:
        """Per pose: landmark key -> share of the picture's pixels."""
        names, size = self.world.landmarks, self.width_px * self.height_px
        seen = []
        for view in self.segment_batch(poses):
            shares = np.bincount(view.ravel(), minlength=len(names)) / size
            seen.append(
                {
                    name: float(share)
                    for name, share in zip(names, shares, strict=True)
                    if share > 0 and share >= minimum_share
                }
            )
        return seen

    def render_top(self) -> np.ndarray:
        """(H, W, 3) uint8 plan without the ceiling, to scale: the whole flat, x right and y up."""
        scene, model = self.world.scene, self.world.model
        self._begin()
        camera = mujoco.MjvCamera()
        camera.type, camera.distance = mujoco.mjtCamera.mjCAMERA_FREE, _TOP_CAMERA_HEIGHT_M
        camera.lookat[:] = scene.width_m / 2, scene.height_m / 2, 0.0
        camera.azimuth, camera.elevation = 90, -90
        # Of an orthographic camera this field is the height of the picture in metres.
        model.vis.global_.orthographic, model.vis.global_.fovy = True, scene.height_m
        camera.orthographic = True
        self._options.geomgroup[GROUP_CEILING] = 0
        self._draw_tile(camera, 0, 0)
        self._options.geomgroup[GROUP_CEILING] = 1
        return self._read_tiles(1)[0]

    def close(self) -> None:
        """Free the buffers; the process keeps its OpenGL context."""
        if self._context is not None:
            gl.current_context()
            self._context.free()
            self._context = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shape(self) -> tuple[int, int, int]:
        return self.height_px, self.width_px, 3

    def _draw(self, poses: np.ndarray, tables: list[np.ndarray] | None = None) -> np.ndarray:
        """Up to a bufferful of poses -> (N, H, W, 3) uint8; appends drawn id -> landmark tables."""
        model = self.world.model
        self._begin()
        for index, pose in enumerate(poses):
            in_view = self._in_view(pose)
            model.geom_group[:] = np.where(in_view, self._group, GROUP_HIDDEN)
            self._aim(pose)
            self._draw_tile(self._camera, *divmod(index, self._columns))
            if tables is not None:  # drawn id 0 is the background, then the geoms drawn in order
                tables.append(np.append(np.int16(0), self.world.landmark_of_geom[in_view]))
        model.geom_group[:] = self._group
        return self._read_tiles(len(poses))

    def _draw_tile(self, camera: mujoco.MjvCamera, row: int, column: int) -> None:
        model, data, everything = self.world.model, self.world.data, mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, None, camera, everything, self._scene)
        left, bottom = column * self.width_px, row * self.height_px
        tile = mujoco.MjrRect(left, bottom, self.width_px, self.height_px)
        mujoco.mjr_render(tile, self._scene, self._context)

    def _read_tiles(self, count: int) -> np.ndarray:
        rows, height, width = math.ceil(count / self._columns), self.height_px, self.width_px
        used = self._pixels[: rows * height]
        mujoco.mjr_readPixels(
            used, None, mujoco.MjrRect(0, 0, used.shape[1], used.shape[0]), self._context
        )
        tiles = used.reshape(rows, height, self._columns, width, 3)[:, ::-1]  # OpenGL's rows go up
        return np.ascontiguousarray(
            tiles.transpose(0, 2, 1, 3, 4).reshape(-1, height, width, 3)[:count]
        )

    def _begin(self) -> None:
        if self._context is None:
            raise SceneError("the renderer is closed; make a new one")
        gl.current_context()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        model = self.world.model
        model.light_active[:] = self._room_light if self._shadows else ~self._room_light
        tangent = math.tan(self.world.appearance.hfov_rad / 2) * self.height_px / self.width_px
        model.vis.global_.fovy = math.degrees(2 * math.atan(tangent))
        model.vis.global_.orthographic = False

    def _aim(self, pose: np.ndarray) -> None:
        look = self.world.appearance
        x, y, yaw = pose
        level, climb = math.cos(look.pitch_rad), math.sin(look.pitch_rad)
        reach = CAMERA_FORWARD_M + level * self._camera.distance
        self._camera.lookat[:] = (
            x + reach * math.cos(yaw),
            y + reach * math.sin(yaw),
            look.camera_height_m + climb * self._camera.distance,
        )
        self._camera.azimuth, self._camera.elevation = (
            math.degrees(yaw),
            math.degrees(look.pitch_rad),
        )

    def _in_view(self, pose: np.ndarray) -> np.ndarray:
        """(ngeom,) bool: drawn geoms whose bounding sphere reaches into the horizontal view."""
        look = self.world.appearance
        tangent = math.tan(look.hfov_rad / 2)
        # A pitched picture's corners reach further to the side than its middle row.
        pitch_rad = abs(look.pitch_rad)
        corner = math.cos(pitch_rad) - tangent * self.height_px / self.width_px * math.sin(
            pitch_rad
        )
        half = math.atan2(tangent, corner) + _CULLING_MARGIN_RAD
        forward = np.array([math.cos(pose[2]), math.sin(pose[2])])
        offset = self._centre - (pose[:2] + CAMERA_FORWARD_M * forward)
        ahead = offset @ forward
        beside = abs(offset @ np.array([-forward[1], forward[0]]))
        return (
            self._drawn
            & (ahead > -self._radius)
            & (beside * math.cos(half) - ahead * math.sin(half) < self._radius)
        )


def _join(chunks: list[np.ndarray], shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(chunks) if chunks else np.empty((0, *shape), dtype)

# SPDX-License-Identifier: Apache-2.0
"""Adds materials, textures, turned meshes and visible or solid boxes to a MuJoCo specification."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.sim import gl  # noqa: F401  (sets MUJOCO_GL before MuJoCo is imported)

import mujoco  # isort: skip

from nvila_ros.sim.textures import TEXTURE_SIZE_PX, texture

# Geom groups: what is drawn, what only the top view leaves out, what only physics sees.
GROUP_VISIBLE, GROUP_CEILING, GROUP_SOLID, GROUP_ROBOT, GROUP_HIDDEN = 0, 1, 3, 4, 5

_QUAT_X_UP = [math.sqrt(0.5), math.sqrt(0.5), 0, 0]  # local z becomes -y: a plate in an 'x' wall
_QUAT_Y_UP = [0.5, 0.5, 0.5, 0.5]  # local z becomes x: a plate in a 'y' wall


class Painter:
    """One specification being filled; equal materials and meshes are made once."""

    def __init__(self, spec: mujoco.MjSpec) -> None:
        self.spec = spec
        self._materials: dict[tuple, str] = {}
        self._textures: set[str] = set()
        self._meshes: set[str] = set()

    def body(self, name: str, x_m: float = 0.0, y_m: float = 0.0, yaw_rad: float = 0.0):
        """A fixed body on the floor."""
        return self.spec.worldbody.add_body(
            name=name, pos=[x_m, y_m, 0], quat=[math.cos(yaw_rad / 2), 0, 0, math.sin(yaw_rad / 2)]
        )

    def material(
        self,
        rgb,
        texture_name: str | None = None,
        repeats_per_m: float | None = None,
        specular: float = 0.12,
        emission: float = 0.0,
    ) -> str:
        """Name of a material; without a repeat rate the texture is stretched over each face."""
        key = (tuple(np.round(rgb, 4)), texture_name, repeats_per_m, specular, emission)
        if key not in self._materials:
            made = self.spec.add_material(
                name=f"material{len(self._materials)}",
                rgba=[*key[0], 1],
                specular=specular,
                shininess=0.3,
                emission=emission,
            )
            if texture_name:
                slots = list(made.textures)
                slots[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = self._texture(texture_name)
                made.textures = slots
                made.texrepeat = [repeats_per_m or 1.0] * 2
                made.texuniform = repeats_per_m is not None
            self._materials[key] = made.name
        return self._materials[key]

    def _texture(self, name: str) -> str:
        if name not in self._textures:
            made = self.spec.add_texture(
                name=name,
                type=mujoco.mjtTexture.mjTEXTURE_2D,
                width=TEXTURE_SIZE_PX,
                height=TEXTURE_SIZE_PX,
                nchannel=3,
            )
            made.data = texture(name).tobytes()
            self._textures.add(name)
        return name

    def mesh(self, name: str, vertices: np.ndarray, faces: np.ndarray, **options) -> str:
        """Name of a mesh given by (V, 3) vertices and (F, 3) faces."""
        if name not in self._meshes:
            self.spec.add_mesh(
                name=name,
                uservert=vertices.ravel(),
                userface=faces.ravel(),
                inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
                **options,
            )
            self._meshes.add(name)
        return name

    def visible(
        self,
        body,
        shape,
        centre,
        half_size,
        material: str,
        quat=(1, 0, 0, 0),
        group: int = GROUP_VISIBLE,
        mesh: str | None = None,
    ) -> None:
        """A geom that is drawn and touches nothing."""
        options = {"meshname": mesh} if mesh else {"size": half_size}
        body.add_geom(
            type=shape,
            pos=centre,
            quat=quat,
            material=material,
            group=group,
            contype=0,
            conaffinity=0,
            **options,
        )

    def box(self, body, centre, half_size, material: str, group: int = GROUP_VISIBLE) -> None:
        """A visible box."""
        self.visible(body, mujoco.mjtGeom.mjGEOM_BOX, centre, half_size, material, group=group)

    def plate(
        self,
        body,
        axis: str,
        along_m: tuple[float, float],
        across_m: float,
        z_m: tuple[float, float],
        thickness_m: float,
        side: int,
        material: str,
    ) -> None:
        """A slab on one face of a wall; its local z is the normal, so textures lie flat on it."""
        middle, offset = sum(along_m) / 2, across_m + side * thickness_m / 2
        centre = (middle, offset, sum(z_m) / 2) if axis == "x" else (offset, middle, sum(z_m) / 2)
        half = ((along_m[1] - along_m[0]) / 2, (z_m[1] - z_m[0]) / 2, thickness_m / 2)
        self.visible(
            body,
            mujoco.mjtGeom.mjGEOM_BOX,
            centre,
            half,
            material,
            quat=_QUAT_X_UP if axis == "x" else _QUAT_Y_UP,
        )

    def solid_box(
        self,
        body,
        x_m: float,
        y_m: float,
        yaw_rad: float,
        half_depth_m: float,
        half_width_m: float,
        height_m: float,
    ) -> None:
        """An invisible box that the robot cannot enter."""
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[x_m, y_m, height_m / 2],
            quat=[math.cos(yaw_rad / 2), 0, 0, math.sin(yaw_rad / 2)],
            size=[half_depth_m, half_width_m, height_m / 2],
            group=GROUP_SOLID,
            contype=1,
            conaffinity=1,
        )

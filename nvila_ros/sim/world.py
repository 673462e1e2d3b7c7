# SPDX-License-Identifier: Apache-2.0
"""The apartment as a running MuJoCo model: a robot that moves, collides and scans."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.geometry import cast_rays, distances_m, obstacles, rectangle_table
from nvila_ros.sim.paint import GROUP_ROBOT, Painter
from nvila_ros.sim.pieces import build_furniture
from nvila_ros.sim.scene import WALL_HEIGHT_M, Scene
from nvila_ros.sim.structure import build_structure

import mujoco  # isort: skip

ROBOT_RADIUS_M = 0.20
CAMERA_FORWARD_M = 0.05  # of the camera before the axis of rotation
LIDAR_RANGE_M = 12.0

_TIMESTEP_S = 0.02  # at most
_LINEAR_GAIN, _ANGULAR_GAIN = 400.0, 40.0  # velocity servos, stiff for a 20 kg base
NEUTRAL = Appearance.default()
STRUCTURE_LANDMARKS = ("other", "floor", "wall", "ceiling")


class World:
    """One scene with one appearance; each process makes its own."""

    def __init__(self, scene: Scene, appearance: Appearance = NEUTRAL) -> None:
        self.scene = scene
        self.appearance = appearance
        self.landmarks: list[str] = [
            *STRUCTURE_LANDMARKS,
            *(door.key for door in scene.doors),
            *(piece.key for piece in scene.furniture),
        ]
        self.model = _build_spec(scene, appearance).compile()
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.landmark_of_geom = self._landmarks_of_geoms()
        self._rectangles = rectangle_table(obstacles(scene))

    def _landmarks_of_geoms(self) -> np.ndarray:
        """(ngeom,) int16 index into `landmarks`."""
        index = {name: position for position, name in enumerate(self.landmarks)}
        of_body = [index.get(self.model.body(body).name, 0) for body in range(self.model.nbody)]
        return np.array(of_body, np.int16)[self.model.geom_bodyid]

    @property
    def pose(self) -> np.ndarray:
        """(3,) x, y, yaw of the robot."""
        return self.data.qpos.copy()

    def set_pose(self, pose: np.ndarray) -> None:
        """Put the robot somewhere, at rest."""
        self.data.qpos[:] = pose
        self.data.qvel[:] = 0
        self.data.ctrl[:] = 0
        mujoco.mj_forward(self.model, self.data)

    def step(self, v_m_s: float, w_rad_s: float, dt_s: float) -> bool:
        """Drive for a while at a forward speed and a turn rate; says whether it hit something."""
        collided = False
        num_steps = max(1, math.ceil(dt_s / _TIMESTEP_S - 1e-9))
        self.model.opt.timestep = dt_s / num_steps
        for _ in range(num_steps):
            yaw = self.data.qpos[2]
            self.data.ctrl[:] = v_m_s * math.cos(yaw), v_m_s * math.sin(yaw), w_rad_s
            mujoco.mj_step(self.model, self.data)
            collided = collided or self.data.ncon > 0
        return collided

    def collides(self, pose: np.ndarray) -> bool:
        """Whether the robot's disc overlaps anything at a pose; does not move the robot."""
        return bool(
            distances_m(np.asarray(pose)[None, :2], self._rectangles).min() < ROBOT_RADIUS_M
        )

    def scan(self, num_rays: int = 360) -> np.ndarray:
        """(R,) ranges in metres, counter-clockwise from straight ahead, inf beyond 12 m."""
        pose = self.data.qpos
        angles = pose[2] + np.arange(num_rays) * (2 * math.pi / num_rays)
        ranges = cast_rays(
            pose[:2], np.stack([np.cos(angles), np.sin(angles)], 1), self._rectangles
        )
        return np.where(ranges <= LIDAR_RANGE_M, ranges, np.inf)


def _build_spec(scene: Scene, appearance: Appearance) -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.option.timestep = _TIMESTEP_S
    spec.option.gravity = [0, 0, 0]
    spec.compiler.degree = False
    spec.stat.extent, spec.stat.center = 5.0, [scene.width_m / 2, scene.height_m / 2, 1]
    spec.visual.map.znear, spec.visual.map.zfar = 0.006, 6.0  # in extents: 3 cm to 30 m
    _light(spec, scene, appearance)
    painter = Painter(spec)
    build_structure(painter, scene, appearance)
    build_furniture(painter, scene, appearance)
    _build_robot(spec)
    return spec


def _light(spec: mujoco.MjSpec, scene: Scene, appearance: Appearance) -> None:
    """A headlight and two directional lights: cheap, and every wall gets its own shade."""
    rgb = np.array(appearance.light_rgb) * appearance.light_intensity
    directed = 1.0 - appearance.ambient_share
    headlight = spec.visual.headlight
    headlight.ambient = 1.05 * appearance.ambient_share * rgb
    headlight.diffuse = 0.45 * directed * rgb
    headlight.specular = [0.04] * 3
    for turn_rad, share in ((0.0, 0.70), (2.3, 0.40)):
        azimuth = appearance.light_azimuth_rad + turn_rad
        spec.worldbody.add_light(
            pos=[scene.width_m / 2, scene.height_m / 2, 6],
            dir=[math.cos(azimuth), math.sin(azimuth), -1.1],
            diffuse=share * directed * rgb,
            specular=[0.05] * 3,
            ambient=[0] * 3,
            castshadow=False,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        )
    for room in scene.rooms:  # lit only by renderers with shadows
        spec.worldbody.add_light(
            name=f"room{room.id}",
            pos=[*room.centre, WALL_HEIGHT_M - 0.08],
            dir=[0, 0, -1],
            diffuse=0.8 * directed * rgb,
            specular=[0.08] * 3,
            ambient=[0.02] * 3,
            cutoff=90,
            exponent=0.6,
            attenuation=[1, 0.02, 0.02],
            castshadow=True,
            active=False,
            type=mujoco.mjtLightType.mjLIGHT_SPOT,
        )


def _build_robot(spec: mujoco.MjSpec) -> None:
    """A disc that slides and turns, held to the commanded velocity by servos."""
    body = spec.worldbody.add_body(name="robot")
    joint = mujoco.mjtJoint
    for name, kind, axis, gain in (
        ("x", joint.mjJNT_SLIDE, (1, 0, 0), _LINEAR_GAIN),
        ("y", joint.mjJNT_SLIDE, (0, 1, 0), _LINEAR_GAIN),
        ("yaw", joint.mjJNT_HINGE, (0, 0, 1), _ANGULAR_GAIN),
    ):
        body.add_joint(name=name, type=kind, axis=axis)
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_velocity(kv=gain)
    body.add_geom(
        name="base",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0, 0, 0.62],
        size=[ROBOT_RADIUS_M, 0.55, 0],
        mass=20,
        group=GROUP_ROBOT,
        contype=1,
        conaffinity=1,
        friction=[0.05, 0, 0],
    )

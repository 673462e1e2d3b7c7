# SPDX-License-Identifier: Apache-2.0
"""Writes config/gazebo/apartment.sdf: the embedded simulator's apartment for Gazebo Harmonic.

What MuJoCo draws (boxes, cylinders, spheres, ellipsoids) becomes visuals, what the robot bumps into
becomes collision boxes: the same rooms, the same instruction. Run again after changing the scene
generator: `.venv/bin/python tools/make_gazebo_world.py`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from xml.sax.saxutils import escape

import mujoco
import numpy as np

from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.geometry import obstacles
from nvila_ros.sim.paint import GROUP_VISIBLE
from nvila_ros.sim.world import World

ROOT = Path(__file__).resolve().parents[1]
HEADER = """<?xml version="1.0"?>
<!-- SPDX-License-Identifier: Apache-2.0
     Made by tools/make_gazebo_world.py from apartment {seed}; try: {instruction} -->
<sdf version="1.9">
  <world name="apartment">
    <physics name="4ms" type="ignored">
      <max_step_size>0.004</max_step_size>
      <real_time_factor>1.0</real_time_factor>
    </physics>
    <plugin filename="gz-sim-physics-system" name="gz::sim::systems::Physics"/>
    <plugin filename="gz-sim-user-commands-system" name="gz::sim::systems::UserCommands"/>
    <plugin filename="gz-sim-scene-broadcaster-system" name="gz::sim::systems::SceneBroadcaster"/>
    <plugin filename="gz-sim-sensors-system" name="gz::sim::systems::Sensors">
      <render_engine>ogre2</render_engine>
    </plugin>
    <scene>
      <ambient>0.6 0.6 0.6 1</ambient>
      <background>0.8 0.85 0.9 1</background>
      <shadows>false</shadows>
    </scene>
    <light type="directional" name="sun">
      <pose>0 0 10 0 0 0</pose>
      <diffuse>0.7 0.7 0.7 1</diffuse>
      <direction>-0.3 0.2 -0.9</direction>
      <cast_shadows>false</cast_shadows>
    </light>
    <model name="apartment">
      <static>true</static>
      <link name="link">
"""
FOOTER = """      </link>
    </model>
  </world>
</sdf>
"""


def numbers(values: object) -> str:
    """'1 0.25 -3': four decimals at most."""
    return " ".join(f"{float(value):.4f}".rstrip("0").rstrip(".") for value in np.ravel(values))


def euler(matrix: np.ndarray) -> tuple[float, float, float]:
    """(3, 3) rotation -> roll, pitch, yaw of SDF (about fixed x, y, z)."""
    roll = math.atan2(matrix[2, 1], matrix[2, 2])
    pitch = math.atan2(-matrix[2, 0], math.hypot(matrix[2, 1], matrix[2, 2]))
    return roll, pitch, math.atan2(matrix[1, 0], matrix[0, 0])


def shape(kind: int, size: np.ndarray) -> str | None:
    """SDF geometry of a MuJoCo geom; None for what has none (meshes, planes)."""
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return f"<box><size>{numbers(2 * size)}</size></box>"
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return f"<sphere><radius>{numbers(size[0])}</radius></sphere>"
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return f"<ellipsoid><radii>{numbers(size)}</radii></ellipsoid>"
    if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        radius, length = numbers(size[0]), numbers(2 * size[1])
        return f"<cylinder><radius>{radius}</radius><length>{length}</length></cylinder>"
    return None


def colour(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """(4,) RGBA: the material's where there is one, its texture's mean included."""
    material = model.geom_matid[geom]
    if material < 0:
        return model.geom_rgba[geom]
    rgba = model.mat_rgba[material].copy()
    textures = [int(index) for index in np.ravel(model.mat_texid[material]) if index >= 0]
    if textures:
        begin, channels = model.tex_adr[textures[0]], model.tex_nchannel[textures[0]]
        count = model.tex_height[textures[0]] * model.tex_width[textures[0]]
        texels = model.tex_data[begin : begin + count * channels].reshape(-1, channels)
        rgba[:3] *= texels[:, :3].mean(axis=0) / 255
    return rgba


def visuals(world: World) -> list[str]:
    """One <visual> per drawn geom that is not the robot's."""
    model, data, found = world.model, world.data, []
    for geom in range(model.ngeom):
        rgba, centre = colour(model, geom), np.zeros(3)
        geometry = shape(model.geom_type[geom], model.geom_size[geom])
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:  # its outline: no files to ship
            centre, half_size = np.split(model.geom_aabb[geom], 2)
            geometry = shape(mujoco.mjtGeom.mjGEOM_BOX, half_size)
        # No ceiling: Gazebo's own view looks in from above, and the sun shines in.
        if geometry is None or rgba[3] < 0.05 or model.geom_group[geom] != GROUP_VISIBLE:
            continue
        turn = data.geom_xmat[geom].reshape(3, 3)
        pose = numbers([*(data.geom_xpos[geom] + turn @ centre), *euler(turn)])
        paint = numbers(rgba)
        found.append(
            f'        <visual name="v{len(found)}"><pose>{pose}</pose>'
            f"<geometry>{geometry}</geometry><material><ambient>{paint}</ambient>"
            f"<diffuse>{paint}</diffuse></material></visual>\n"
        )
    return found


def collisions(world: World) -> list[str]:
    """One <collision> per obstacle, and the floor."""
    found = [
        '        <collision name="floor"><pose>0 0 -0.05 0 0 0</pose>'
        "<geometry><box><size>60 60 0.1</size></box></geometry></collision>\n"
    ]
    for number, thing in enumerate(obstacles(world.scene)):
        pose = numbers([thing.x_m, thing.y_m, thing.height_m / 2, 0, 0, thing.yaw_rad])
        size = numbers([2 * thing.half_depth_m, 2 * thing.half_width_m, thing.height_m])
        found.append(
            f'        <collision name="c{number}"><pose>{pose}</pose>'
            f"<geometry><box><size>{size}</size></box></geometry></collision>\n"
        )
    return found


def apartment_sdf(seed: int) -> str:
    """The whole file."""
    episode = episode_from_seed(seed)
    world = World(episode.scene)
    head = HEADER.format(seed=seed, instruction=escape(episode.instruction))
    return head + "".join(visuals(world) + collisions(world)) + FOOTER


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--out", type=Path, default=ROOT / "config" / "gazebo" / "apartment.sdf")
    given = parser.parse_args()
    given.out.write_text(apartment_sdf(given.seed), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""The robot of the simulator node without ROS: commands in, time passes, sensors out."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvila_ros.errors import SceneError
from nvila_ros.nodes.base_command import BaseCommand
from nvila_ros.safety import Velocity
from nvila_ros.settings import check_settings, setting
from nvila_ros.sim.episodes import Episode, episode_from_seed, load_episodes
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.scene import COLOURS
from nvila_ros.sim.world import World

_fixed = functools.partial(setting, fixed=True)


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """Settings of the simulator node."""

    seed: int = setting(
        900000, "apartment, start and goal; setting it moves the robot there", at_least=0, live=True
    )
    episode_file: str = _fixed("", "file of episodes (nvila_ros.sim.episodes.save_episodes)")
    episode_index: int = _fixed(0, "which episode of the file", at_least=0)
    image_width_px: int = _fixed(224, "width of the camera image, px", at_least=16, at_most=1920)
    image_height_px: int = _fixed(224, "height of the camera image, px", at_least=16, at_most=1080)
    camera_rate_hz: float = _fixed(10.0, "images per second of simulated time", at_least=0.1)
    scan_rate_hz: float = _fixed(10.0, "scans per second of simulated time", at_least=0.1)
    num_scan_rays: int = _fixed(360, "rays of the lidar", at_least=8, at_most=3600)
    step_s: float = _fixed(
        0.05, "simulated time per step, also of odometry and clock, s", at_least=0.005, at_most=0.2
    )
    real_time_factor: float = _fixed(
        1.0, "simulated seconds per second of wall time", at_least=0.05, at_most=20.0
    )
    command_timeout_s: float = _fixed(
        0.5, "the base stops when cmd_vel was silent for this long, s", at_least=0.05
    )
    enable_stamped_cmd_vel: bool = _fixed(True, "cmd_vel is a TwistStamped, else a Twist")
    frame_prefix: str = _fixed("", "put before odom, base_link, camera and lidar frames")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Motion:
    """What odometry says after a step."""

    pose: np.ndarray  # (3,) x_m, y_m, yaw_rad
    velocity: Velocity  # as driven, in the robot's frame
    collided: bool


class SimulatedRobot:
    """One episode's apartment with the robot in it; one thread uses it (it draws with OpenGL)."""

    def __init__(self, episode: Episode, config: SimulatorConfig) -> None:
        self.episode = episode
        self.world = World(episode.scene)
        self._config = config
        self._renderer = Renderer(self.world, config.image_width_px, config.image_height_px)
        self._command = BaseCommand(config.command_timeout_s)
        self.reset()

    @property
    def horizontal_fov_rad(self) -> float:
        return self.world.appearance.hfov_rad

    def reset(self) -> None:
        """Back to the start of the episode, at rest."""
        self.world.set_pose(np.array(self.episode.start))
        self._command.clear()

    def command(self, velocity: Velocity, wall_s: float) -> None:
        """The newest cmd_vel; no number is no motion."""
        self._command.give(velocity, wall_s)

    def step(self, wall_s: float) -> Motion:
        """One step of simulated time; a command that was not renewed in time is over."""
        velocity = self._command.at(wall_s)
        before = self.world.pose
        collided = self.world.step(velocity.forward_m_s, velocity.turn_rad_s, self._config.step_s)
        pose = self.world.pose
        driven = (pose - before) / self._config.step_s
        along_m_s = driven[0] * math.cos(pose[2]) + driven[1] * math.sin(pose[2])
        return Motion(pose, Velocity(float(along_m_s), float(driven[2])), collided)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: what the camera sees now."""
        return self._renderer.render(self.world.pose)

    def scan(self) -> np.ndarray:
        """(R,) metres, counter-clockwise from straight ahead; inf where nothing is in range."""
        return self.world.scan(self._config.num_scan_rays)

    def close(self) -> None:
        """Frees the picture buffers."""
        self._renderer.close()


def load_episode(config: SimulatorConfig) -> Episode:
    """The episode of the settings; SceneError says what is wrong with the file."""
    if not config.episode_file:
        return episode_from_seed(config.seed)
    episodes = load_episodes(config.episode_file)
    if config.episode_index >= len(episodes):
        raise SceneError(
            f"{config.episode_file} holds {len(episodes)} episodes, "
            f"episode_index {config.episode_index} asks for more"
        )
    return episodes[config.episode_index]


def give_memory_back() -> None:
    """Returns what an apartment before this one took: glibc keeps it, in ever more pieces."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def floor_plan_row(episode: Episode) -> dict[str, Any]:
    """The apartment from above as plain numbers, for whoever draws it: metres, y up."""
    scene = episode.scene
    return {
        "size_m": [scene.width_m, scene.height_m],
        "rooms": [
            {"kind": r.kind, "box_m": [r.x_min_m, r.y_min_m, r.x_max_m, r.y_max_m]}
            for r in scene.rooms
        ],
        "doors": [
            {
                "colour": d.colour,
                "axis": d.axis,
                "at_m": [d.x_m, d.y_m],
                "open": len(d.room_ids) > 1,
            }
            for d in scene.doors
        ],
        "furniture": [
            {
                "name": f"{piece.colour} {piece.category}",
                "rgb": [round(255 * value) for value in COLOURS[piece.colour]],
                "corners_m": piece.corners().round(2).tolist(),
            }
            for piece in scene.furniture
        ],
    }

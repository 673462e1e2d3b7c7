# SPDX-License-Identifier: Apache-2.0
"""Habitat as a robot on ROS topics: what the simulator node is for the embedded one.

Publishes image, camera_info, odom, collision, /clock and ~/episode, takes cmd_vel, exactly as the
embedded simulator does; there is no lidar. The server is `nvila_ros/evaluation/habitat_server.py`.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from std_msgs.msg import String

from nvila_ros import ros_parameters
from nvila_ros.errors import ConfigError
from nvila_ros.evaluation.habitat_client import DEFAULT_ENDPOINT, HabitatClient, View
from nvila_ros.evaluation.vlnce_episodes import VlnCeEpisode, load_vlnce
from nvila_ros.nodes.base_command import BaseCommand
from nvila_ros.nodes.simulated_robot import Motion, SimulatorConfig
from nvila_ros.nodes.world_node import WorldNode
from nvila_ros.ros_main import run_node
from nvila_ros.safety import Velocity
from nvila_ros.settings import setting


@dataclass(frozen=True, kw_only=True)
class HabitatConfig(SimulatorConfig):
    """Settings of the Habitat node; those of apartment, seed and lidar have no meaning here."""

    endpoint: str = setting(DEFAULT_ENDPOINT, "where habitat_server.py listens")
    data: str = setting("", "folder that holds <split>/<split>.json.gz")
    dataset: str = setting("r2r", "which form the files have", one_of=("r2r", "rxr"))
    split: str = setting("val_unseen", "val_unseen, val_seen, ...")
    horizontal_fov_deg: float = setting(
        90.0, "of the server's camera, degrees", at_least=20.0, at_most=160.0
    )


class HabitatRobot:
    """One VLN-CE episode's agent: the methods of SimulatedRobot over a socket."""

    def __init__(self, client: Any, episode: VlnCeEpisode, config: HabitatConfig) -> None:
        self._client, self._episode, self._config = client, episode, config
        self._command = BaseCommand(config.command_timeout_s)
        self._view: View = client.reset(episode)

    @property
    def horizontal_fov_rad(self) -> float:
        return math.radians(self._config.horizontal_fov_deg)

    def episode_row(self) -> dict[str, Any]:
        """What ~/episode says, as JSON."""
        episode = self._episode
        return {
            "episode_id": episode.episode_id,
            "instruction": episode.instruction,
            "start": [*episode.start_m[:2].tolist(), episode.start_yaw_rad],
            "goal": episode.goal_m[:2].tolist(),
            "geodesic_m": episode.geodesic_m,
        }

    def reset(self) -> None:
        """Back to the start, at rest."""
        self._command.clear()
        self._view = self._client.reset(self._episode)

    def command(self, velocity: Velocity, wall_s: float) -> None:
        """The newest cmd_vel; no number is no motion."""
        self._command.give(velocity, wall_s)

    def step(self, wall_s: float) -> Motion:
        """One step of simulated time; a command that was not renewed in time is over."""
        velocity = self._command.at(wall_s)
        before, step_s = self._view, self._config.step_s
        if velocity.is_zero():
            collided = False
        else:
            self._view = self._client.drive(velocity.forward_m_s, velocity.turn_rad_s, step_s)
            collided = self._view.collided
        moved = (self._view.position_m - before.position_m)[:2] / step_s
        yaw_rad = self._view.yaw_rad
        along = moved[0] * math.cos(yaw_rad) + moved[1] * math.sin(yaw_rad)
        turned = math.remainder(yaw_rad - before.yaw_rad, math.tau) / step_s
        pose = np.array([*self._view.position_m[:2], yaw_rad])
        return Motion(pose, Velocity(float(along), float(turned)), collided)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: what the camera sees now."""
        return self._view.rgb

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


def habitat_robot(config: HabitatConfig) -> HabitatRobot:
    """The robot in the episode of the settings."""
    if not config.data:
        raise ConfigError("parameter data is empty; give the folder of VLN-CE's episode files")
    episodes = load_vlnce(config.data, config.dataset, config.split)
    if config.episode_index >= len(episodes):
        raise ConfigError(
            f"{config.split} holds {len(episodes)} episodes, episode_index {config.episode_index} "
            "asks for more"
        )
    return HabitatRobot(HabitatClient(config.endpoint), episodes[config.episode_index], config)


class HabitatNode(WorldNode):
    """Steps by its own clock and publishes that as /clock, like the simulator node."""

    robot: HabitatRobot

    def __init__(self, **node_options: Any) -> None:
        super().__init__("habitat", **node_options)
        self.settings = ros_parameters.declare(self, HabitatConfig)
        self.robot = habitat_robot(self.settings)
        self._open(self._on_timer)
        row = self.robot.episode_row()
        self._episode_publisher.publish(String(data=json.dumps(row)))
        self.get_logger().info(f"episode {row['episode_id']}: {row['instruction']!r}")

    def _on_timer(self) -> None:
        self._say_picture_when_due(self._step().header.stamp)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros habitat_node`."""
    return run_node(HabitatNode, arguments)


if __name__ == "__main__":
    sys.exit(main())

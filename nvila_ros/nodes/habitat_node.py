# SPDX-License-Identifier: Apache-2.0
"""Habitat as a robot on ROS topics: what the simulator node is for the embedded one.

Publishes image, camera_info, odom, collision, /clock and ~/episode, takes cmd_vel, exactly as the
embedded simulator does; there is no lidar. The server is `nvila_ros/evaluation/habitat_server.py`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from nvila_ros import ros_images, ros_parameters
from nvila_ros.errors import ConfigError
from nvila_ros.evaluation.habitat_client import DEFAULT_ENDPOINT, HabitatClient, View
from nvila_ros.evaluation.vlnce_episodes import VlnCeEpisode, load_vlnce
from nvila_ros.nodes.base_command import BaseCommand
from nvila_ros.nodes.simulated_robot import (
    Motion,
    SimulatorConfig,
)
from nvila_ros.ros_main import (
    COMMAND_QOS,
    SENSOR_QOS,
    STATE_QOS,
    SafeNode,
    run_node,
    steady_clock,
)
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


class HabitatNode(SafeNode):
    """Steps by its own clock and publishes that as /clock, like the simulator node."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__("habitat", **node_options)
        self.settings = ros_parameters.declare(self, HabitatConfig)
        settings = self.settings
        self.robot = habitat_robot(settings)
        self._step_ns, self._time_ns = round(settings.step_s * 1e9), 0
        self._steps_per_image = max(1, round(1 / (settings.camera_rate_hz * settings.step_s)))
        self._num_steps = 0
        publish = self.create_publisher
        self._clock_publisher = publish(Clock, "/clock", SENSOR_QOS)
        self._image = publish(Image, "image", SENSOR_QOS)
        self._info = publish(CameraInfo, "camera_info", SENSOR_QOS)
        self._odometry = publish(Odometry, "odom", SENSOR_QOS)
        self._collision = publish(Bool, "collision", COMMAND_QOS)
        self._episode = publish(String, "~/episode", STATE_QOS)
        kind = TwistStamped if settings.enable_stamped_cmd_vel else Twist
        self.create_subscription(kind, "cmd_vel", self._on_velocity, COMMAND_QOS)
        self.create_service(Trigger, "~/reset", self._on_reset)
        row = self.robot.episode_row()
        self._episode.publish(String(data=json.dumps(row)))
        self.get_logger().info(f"episode {row['episode_id']}: {row['instruction']!r}")
        period_s = settings.step_s / settings.real_time_factor
        self.create_timer(period_s, self._on_timer, clock=steady_clock())

    def shut_down(self) -> None:
        """Ends the connection."""
        self.robot.close()

    def _on_velocity(self, message: Twist | TwistStamped) -> None:
        twist = message.twist if isinstance(message, TwistStamped) else message
        self.robot.command(Velocity(twist.linear.x, twist.angular.z), time.monotonic())

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        self.robot.reset()
        response.success, response.message = True, "the robot is back at the start"
        return response

    def _on_timer(self) -> None:
        """One step; a server that is too slow lets simulated time fall behind."""
        self._time_ns += self._step_ns
        self._num_steps += 1
        stamp = Time(sec=self._time_ns // 10**9, nanosec=self._time_ns % 10**9)
        motion = self.robot.step(time.monotonic())
        self._clock_publisher.publish(Clock(clock=stamp))
        self._odometry.publish(self._odometry_message(motion, stamp))
        self._collision.publish(Bool(data=motion.collided))
        if self._num_steps % self._steps_per_image == 0:
            rgb = self.robot.picture()
            frame_id = self.settings.frame_prefix + "camera_optical_frame"
            self._image.publish(ros_images.from_rgb(rgb, stamp, frame_id))
            self._info.publish(self._camera_info(rgb.shape, stamp, frame_id))

    def _odometry_message(self, motion: Motion, stamp: Time) -> Odometry:
        prefix = self.settings.frame_prefix
        message = Odometry(child_frame_id=prefix + "base_link")
        message.header.stamp, message.header.frame_id = stamp, prefix + "odom"
        x_m, y_m, yaw_rad = (float(value) for value in motion.pose)
        pose, twist = message.pose.pose, message.twist.twist
        pose.position.x, pose.position.y = x_m, y_m
        pose.orientation.z, pose.orientation.w = math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)
        twist.linear.x = motion.velocity.forward_m_s
        twist.angular.z = motion.velocity.turn_rad_s
        return message

    def _camera_info(self, shape: tuple[int, ...], stamp: Time, frame_id: str) -> CameraInfo:
        height, width = shape[:2]
        focal_px = width / 2 / math.tan(self.robot.horizontal_fov_rad / 2)
        x_px, y_px = (width - 1) / 2, (height - 1) / 2
        message = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
        message.header.stamp, message.header.frame_id = stamp, frame_id
        message.d = [0.0] * 5
        message.k = [focal_px, 0.0, x_px, 0.0, focal_px, y_px, 0.0, 0.0, 1.0]
        message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        message.p = [focal_px, 0.0, x_px, 0.0, 0.0, focal_px, y_px, 0.0, 0.0, 0.0, 1.0, 0.0]
        return message


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros habitat_node`."""
    return run_node(HabitatNode, arguments)


if __name__ == "__main__":
    sys.exit(main())

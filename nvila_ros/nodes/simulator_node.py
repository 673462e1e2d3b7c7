# SPDX-License-Identifier: Apache-2.0
"""ROS shell of the simulator: an apartment with a robot, seen only through topics."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from nvila_ros import ros_images, ros_parameters
from nvila_ros.errors import NvilaError
from nvila_ros.nodes.simulated_frames import SimulatedFrames
from nvila_ros.nodes.simulated_robot import (
    Motion,
    SimulatedRobot,
    SimulatorConfig,
    floor_plan_row,
    give_memory_back,
    load_episode,
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
from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.world import CAMERA_FORWARD_M, LIDAR_RANGE_M, ROBOT_RADIUS_M

_NANOSECONDS = 1_000_000_000
RANDOM_SEEDS = (900_000, 999_999)  # training never saw these


class SimulatorNode(SafeNode):
    """Steps the world by its own clock and publishes that as /clock.

    Physics, odometry and clock tick together; camera and lidar every few of these steps. Setting
    the parameter `seed` moves the robot to another apartment; time stands still meanwhile.
    """

    def __init__(self, **node_options: Any) -> None:
        super().__init__("simulator", **node_options)
        self.settings = ros_parameters.declare(self, SimulatorConfig, editable=True)
        settings = self.settings
        self.robot = SimulatedRobot(load_episode(settings), settings)
        self._wanted_seed: int | None = None
        self._step_ns = round(settings.step_s * _NANOSECONDS)
        self._time_ns = 0
        self._steps_per_image = max(1, round(1 / (settings.camera_rate_hz * settings.step_s)))
        self._steps_per_scan = max(1, round(1 / (settings.scan_rate_hz * settings.step_s)))
        self._num_steps = 0
        self._publish_outputs()
        kind = TwistStamped if settings.enable_stamped_cmd_vel else Twist
        self.create_subscription(kind, "cmd_vel", self._on_velocity, COMMAND_QOS)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/random_episode", self._on_random_episode)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._camera_info = self._make_camera_info()
        self._tell_episode()
        interval_s = settings.step_s / settings.real_time_factor
        self.create_timer(interval_s, self._on_timer, clock=steady_clock())

    def shut_down(self) -> None:
        """Frees what draws."""
        self.robot.close()

    def _publish_outputs(self) -> None:
        self._clock_publisher = self.create_publisher(Clock, "/clock", SENSOR_QOS)
        self._image_publisher = self.create_publisher(Image, "image", SENSOR_QOS)
        self._info_publisher = self.create_publisher(CameraInfo, "camera_info", SENSOR_QOS)
        self._odometry_publisher = self.create_publisher(Odometry, "odom", SENSOR_QOS)
        self._scan_publisher = self.create_publisher(LaserScan, "scan", SENSOR_QOS)
        self._collision_publisher = self.create_publisher(Bool, "collision", COMMAND_QOS)
        self._episode_publisher = self.create_publisher(String, "~/episode", STATE_QOS)
        camera_m = CAMERA_FORWARD_M, self.robot.world.appearance.camera_height_m
        self._frames = SimulatedFrames(self, self.settings.frame_prefix, camera_m)

    def _tell_episode(self) -> None:
        episode = self.robot.episode
        row = {
            "seed": episode.seed,
            "instruction": episode.instruction,
            "start": list(episode.start),
            "goal": list(episode.goal),
            "geodesic_m": episode.geodesic_m,
            "plan": floor_plan_row(episode),
        }
        self._episode_publisher.publish(String(data=json.dumps(row)))
        self.get_logger().info(f"apartment {episode.seed}; try: {episode.instruction!r}")

    def _on_velocity(self, message: Twist | TwistStamped) -> None:
        twist = message.twist if isinstance(message, TwistStamped) else message
        self.robot.command(Velocity(twist.linear.x, twist.angular.z), time.monotonic())

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        self.robot.reset()
        response.success, response.message = True, "the robot is back at the start"
        return response

    def _on_random_episode(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        seed = random.randint(*RANDOM_SEEDS)
        self.set_parameters([Parameter("seed", value=seed)])
        response.success, response.message = True, f"apartment {seed} is being built"
        return response

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Only the seed may change; the next step builds its apartment."""
        try:
            self.settings = ros_parameters.changed(self.settings, parameters, only_live=True)
        except NvilaError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if any(parameter.name == "seed" for parameter in parameters):
            self._wanted_seed = self.settings.seed
        return SetParametersResult(successful=True)

    def _move(self, seed: int) -> None:
        """To the apartment of a seed; back to the one before where that has no episode."""
        episode = self.robot.episode
        self.robot.close()
        try:
            episode = episode_from_seed(seed)
        except NvilaError as error:
            self.get_logger().error(f"seed {seed}: {error}")
        self.robot = SimulatedRobot(episode, self.settings)
        give_memory_back()
        self._camera_info = self._make_camera_info()
        self._tell_episode()

    def _on_timer(self) -> None:
        """One step; a machine that is too slow lets simulated time fall behind."""
        if self._wanted_seed is not None:
            seed, self._wanted_seed = self._wanted_seed, None
            self._move(seed)
        self._time_ns += self._step_ns
        self._num_steps += 1
        stamp = Time(sec=self._time_ns // _NANOSECONDS, nanosec=self._time_ns % _NANOSECONDS)
        motion = self.robot.step(time.monotonic())
        self._clock_publisher.publish(Clock(clock=stamp))
        odometry = self._odometry(motion, stamp)
        self._odometry_publisher.publish(odometry)
        self._frames.publish(odometry)
        self._collision_publisher.publish(Bool(data=motion.collided))
        if self._num_steps % self._steps_per_scan == 0:
            self._scan_publisher.publish(self._scan(stamp))
        if self._num_steps % self._steps_per_image == 0:
            frame = self._frame("camera_optical_frame")
            self._image_publisher.publish(ros_images.from_rgb(self.robot.picture(), stamp, frame))
            self._camera_info.header.stamp = stamp
            self._info_publisher.publish(self._camera_info)

    def _frame(self, name: str) -> str:
        return self.settings.frame_prefix + name

    def _odometry(self, motion: Motion, stamp: Time) -> Odometry:
        message = Odometry(child_frame_id=self._frame("base_link"))
        message.header.stamp, message.header.frame_id = stamp, self._frame("odom")
        x_m, y_m, yaw_rad = (float(value) for value in motion.pose)
        message.pose.pose.position.x, message.pose.pose.position.y = x_m, y_m
        message.pose.pose.orientation.z = math.sin(yaw_rad / 2)
        message.pose.pose.orientation.w = math.cos(yaw_rad / 2)
        message.twist.twist.linear.x = motion.velocity.forward_m_s
        message.twist.twist.angular.z = motion.velocity.turn_rad_s
        return message

    def _scan(self, stamp: Time) -> LaserScan:
        step_rad = math.tau / self.settings.num_scan_rays
        message = LaserScan(
            angle_min=0.0,
            angle_max=math.tau - step_rad,
            angle_increment=step_rad,
            range_min=ROBOT_RADIUS_M / 2,
            range_max=LIDAR_RANGE_M,
            scan_time=1.0 / self.settings.scan_rate_hz,
        )
        message.header.stamp, message.header.frame_id = stamp, self._frame("lidar")
        message.ranges = self.robot.scan().astype(np.float32).tolist()
        return message

    def _make_camera_info(self) -> CameraInfo:
        width, height = self.settings.image_width_px, self.settings.image_height_px
        focal_px = width / 2 / math.tan(self.robot.horizontal_fov_rad / 2)
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        message = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
        message.header.frame_id = self._frame("camera_optical_frame")
        message.d = [0.0] * 5
        message.k = [focal_px, 0.0, centre_x, 0.0, focal_px, centre_y, 0.0, 0.0, 1.0]
        message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        message.p = [
            *(focal_px, 0.0, centre_x, 0.0),
            *(0.0, focal_px, centre_y, 0.0),
            *(0.0, 0.0, 1.0, 0.0),
        ]
        return message


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros simulator_node`."""
    return run_node(SimulatorNode, arguments)


if __name__ == "__main__":
    sys.exit(main())

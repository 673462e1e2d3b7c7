# SPDX-License-Identifier: Apache-2.0
"""What the nodes that stand for a world share: a clock of their own, cmd_vel in, sensors out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from nvila_ros import ros_images
from nvila_ros.nodes.simulated_robot import Motion, SimulatorConfig
from nvila_ros.ros_main import COMMAND_QOS, SENSOR_QOS, STATE_QOS, SafeNode, steady_clock
from nvila_ros.safety import Velocity

_NANOSECONDS = 1_000_000_000


class Robot(Protocol):
    """The robot in such a world: SimulatedRobot, HabitatRobot."""

    @property
    def horizontal_fov_rad(self) -> float: ...

    def reset(self) -> None: ...

    def command(self, velocity: Velocity, wall_s: float) -> None: ...

    def step(self, wall_s: float) -> Motion: ...

    def picture(self) -> np.ndarray: ...

    def close(self) -> None: ...


class WorldNode(SafeNode):
    """Publishes /clock, odom, collision, image, camera_info and ~/episode; takes cmd_vel, ~/reset.

    A subclass sets `settings` and `robot`, then calls `_open` with what is done every step.
    """

    settings: SimulatorConfig
    robot: Robot

    def _open(self, on_timer: Callable[[], None]) -> None:
        settings, publish = self.settings, self.create_publisher
        self._step_ns, self._time_ns = round(settings.step_s * _NANOSECONDS), 0
        self._num_steps = 0
        self._steps_per_image = self._steps_per(settings.camera_rate_hz)
        self._clock_publisher = publish(Clock, "/clock", SENSOR_QOS)
        self._image_publisher = publish(Image, "image", SENSOR_QOS)
        self._info_publisher = publish(CameraInfo, "camera_info", SENSOR_QOS)
        self._odometry_publisher = publish(Odometry, "odom", SENSOR_QOS)
        self._collision_publisher = publish(Bool, "collision", COMMAND_QOS)
        self._episode_publisher = publish(String, "~/episode", STATE_QOS)
        kind = TwistStamped if settings.enable_stamped_cmd_vel else Twist
        self.create_subscription(kind, "cmd_vel", self._on_velocity, COMMAND_QOS)
        self.create_service(Trigger, "~/reset", self._on_reset)
        interval_s = settings.step_s / settings.real_time_factor
        self.create_timer(interval_s, on_timer, clock=steady_clock())

    def shut_down(self) -> None:
        """Frees what draws, or ends the connection."""
        self.robot.close()

    def _on_velocity(self, message: Twist | TwistStamped) -> None:
        twist = message.twist if isinstance(message, TwistStamped) else message
        self.robot.command(Velocity(twist.linear.x, twist.angular.z), time.monotonic())

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        self.robot.reset()
        response.success, response.message = True, "the robot is back at the start"
        return response

    def _steps_per(self, rate_hz: float) -> int:
        """Steps between two messages of a sensor."""
        return max(1, round(1 / (rate_hz * self.settings.step_s)))

    def _frame(self, name: str) -> str:
        return self.settings.frame_prefix + name

    def _step(self) -> Odometry:
        """Time passes: clock, odometry and collision go out; a slow machine lets time fall back."""
        self._time_ns += self._step_ns
        self._num_steps += 1
        stamp = Time(sec=self._time_ns // _NANOSECONDS, nanosec=self._time_ns % _NANOSECONDS)
        motion = self.robot.step(time.monotonic())
        self._clock_publisher.publish(Clock(clock=stamp))
        odometry = self._odometry(motion, stamp)
        self._odometry_publisher.publish(odometry)
        self._collision_publisher.publish(Bool(data=motion.collided))
        return odometry

    def _say_picture_when_due(self, stamp: Time) -> None:
        if self._num_steps % self._steps_per_image:
            return
        rgb = self.robot.picture()
        frame_id = self._frame("camera_optical_frame")
        self._image_publisher.publish(ros_images.from_rgb(rgb, stamp, frame_id))
        info = camera_info(rgb.shape, self.robot.horizontal_fov_rad)
        info.header.stamp, info.header.frame_id = stamp, frame_id
        self._info_publisher.publish(info)

    def _odometry(self, motion: Motion, stamp: Time) -> Odometry:
        message = Odometry(child_frame_id=self._frame("base_link"))
        message.header.stamp, message.header.frame_id = stamp, self._frame("odom")
        x_m, y_m, yaw_rad = (float(value) for value in motion.pose)
        pose, twist = message.pose.pose, message.twist.twist
        pose.position.x, pose.position.y = x_m, y_m
        pose.orientation.z, pose.orientation.w = math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)
        twist.linear.x = motion.velocity.forward_m_s
        twist.angular.z = motion.velocity.turn_rad_s
        return message


def camera_info(shape: tuple[int, ...], horizontal_fov_rad: float) -> CameraInfo:
    """Of a pinhole camera without distortion, square pixels; shape is (height, width, ...)."""
    height, width = shape[:2]
    focal_px = width / 2 / math.tan(horizontal_fov_rad / 2)
    x_px, y_px = (width - 1) / 2, (height - 1) / 2
    message = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
    message.d = [0.0] * 5
    message.k = [focal_px, 0.0, x_px, 0.0, focal_px, y_px, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [focal_px, 0.0, x_px, 0.0, 0.0, focal_px, y_px, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message

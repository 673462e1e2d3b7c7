# SPDX-License-Identifier: Apache-2.0
"""Listener of the demo: says the instruction, hears every topic, keeps a record of the drive."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from nvila_ros import ros_images
from nvila_ros.config import HistoryConfig
from nvila_ros.evaluation.drive_record import DriveRecord, GoalDistance, HeardDecision
from nvila_ros.history import FrameHistory
from nvila_ros.ros_main import COMMAND_QOS, EVENT_QOS, SENSOR_QOS, STATE_QOS
from nvila_ros.sim.episodes import Episode


class DemoListener(Node):
    """Hears what simulator and navigator publish; a history of its own shows what the model saw."""

    def __init__(
        self,
        episode: Episode,
        num_frames: int,
        on_decision: Callable[[HeardDecision], None],
    ) -> None:
        super().__init__("demo")
        self.record = DriveRecord()
        self.phase = ""
        self._started = False
        self._on_decision = on_decision
        self._goal_distance = GoalDistance(episode)
        self._history = FrameHistory(HistoryConfig(num_frames=num_frames))
        self._pose: tuple[float, float, float] | None = None
        self._now_s = 0.0
        self._instruction_publisher = self.create_publisher(String, "instruction", EVENT_QOS)
        self._cancel_client = self.create_client(Trigger, "navigator/cancel")
        self.create_subscription(Odometry, "odom", self._on_odometry, SENSOR_QOS)
        self.create_subscription(Image, "image", self._on_image, SENSOR_QOS)
        self.create_subscription(Bool, "collision", self._on_collision, COMMAND_QOS)
        self.create_subscription(TwistStamped, "cmd_vel", self._on_command, COMMAND_QOS)
        self.create_subscription(String, "navigator/decision", self._on_decision_row, STATE_QOS)
        self.create_subscription(String, "navigator/state", self._on_state, STATE_QOS)

    @property
    def ready(self) -> bool:
        """Whether robot and navigator are there, and the model is loaded."""
        return (
            self._pose is not None
            and bool(self.record.images or self._history.current)
            and self.phase == "idle"
            and self._instruction_publisher.get_subscription_count() > 0
        )

    @property
    def finished(self) -> bool:
        """Whether the navigator has said how the episode ended."""
        return bool(self.record.result)

    def say(self, instruction: str) -> None:
        """Publishes the instruction; the record begins."""
        self._started = True
        self._instruction_publisher.publish(String(data=instruction))

    def cancel(self) -> None:
        """Asks the navigator to end the episode; the answer comes as a state."""
        self._cancel_client.call_async(Trigger.Request())

    def _on_odometry(self, message: Odometry) -> None:
        pose, twist = message.pose.pose, message.twist.twist
        yaw_rad = 2.0 * math.atan2(pose.orientation.z, pose.orientation.w)
        self._pose = (pose.position.x, pose.position.y, yaw_rad)
        self._now_s = _seconds(message)
        self.record.final_speed_m_s = twist.linear.x
        self.record.final_turn_rad_s = twist.angular.z
        if self._started:
            self.record.add_pose(self._now_s, *self._pose)

    def _on_image(self, message: Image) -> None:
        if self._pose is None:
            return
        rgb = ros_images.to_rgb(message)
        stamp_s = _seconds(message)
        self._history.append(rgb, *self._pose, stamp_s)
        if self._started:
            self.record.add_image(stamp_s, rgb)

    def _on_collision(self, message: Bool) -> None:
        if self._started and message.data:
            self.record.collisions_s.append(self._now_s)

    def _on_command(self, message: TwistStamped) -> None:
        twist = message.twist
        self.record.last_command = (twist.linear.x, twist.angular.z)

    def _on_decision_row(self, message: String) -> None:
        if not self._started or self._pose is None:
            return
        row = json.loads(message.data)
        frames = self._history.select()
        decision = HeardDecision(
            heard_s=self._now_s,
            sentence=row["sentence"],
            index=row["index"],
            confidence=row["confidence"],
            latency_s=row["latency_s"],
            num_encoded_frames=row["num_encoded_frames"],
            goal_distance_m=float(self._goal_distance(np.array([self._pose]))[0]),
            strip=tuple(None if frame is None else frame.rgb for frame in frames),
        )
        self.record.decisions.append(decision)
        self._on_decision(decision)

    def _on_state(self, message: String) -> None:
        row = json.loads(message.data)
        self.phase = row["state"]
        if self._started and row["episode"] > 0 and row["result"]:
            self.record.result, self.record.message = row["result"], row["message"]
        elif self.phase == "fault":
            self.record.result, self.record.message = "FAULT", row["message"]


def _seconds(message: Odometry | Image) -> float:
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9

# SPDX-License-Identifier: Apache-2.0
"""Everything the navigator node says: velocities, decisions, states, plan, what the model saw."""

from __future__ import annotations

import array
import copy
import json
import math
from typing import Any

from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from nav_msgs.msg import Path
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import (
    DecisionEvent,
    EpisodeEvent,
    Event,
    PlanEvent,
    PrimitiveEvent,
    decision_row,
    primitive_row,
)
from nvila_ros.ros_main import COMMAND_QOS, EVENT_QOS, STATE_QOS
from nvila_ros.safety import Pose, Velocity

ACKNOWLEDGE_TIMEOUT_S = 0.2


class NavigatorOutputs:
    """Publishers of one configured node; `close` removes them."""

    def __init__(self, node: Node, settings: NavigatorConfig) -> None:
        self._node, self._settings = node, settings
        self._publishers: list[Any] = []
        self._twist = TwistStamped if settings.enable_stamped_cmd_vel else Twist
        self._velocity = self._publisher(self._twist, "cmd_vel", COMMAND_QOS)
        self._decision = self._publisher(String, "~/decision", STATE_QOS)
        self._primitive = self._publisher(String, "~/primitive", EVENT_QOS)
        self._plan = self._publisher(Path, "~/plan", STATE_QOS)
        self._history = self._publisher(CompressedImage, "~/history/compressed", EVENT_QOS)
        self.frame_id = "odom"  # of the plan: the odometry's

    def _publisher(self, kind: Any, topic: str, qos: Any) -> Any:
        options = QoSOverridingOptions.with_default_policies()
        own = copy.copy(qos)  # rclpy writes overrides into what it is given
        made = self._node.create_publisher(kind, topic, own, qos_overriding_options=options)
        self._publishers.append(made)
        return made

    def close(self) -> None:
        """Removes the publishers."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    @property
    def num_listeners(self) -> int:
        """Of the velocities."""
        return int(self._velocity.get_subscription_count())

    @property
    def wants_history(self) -> bool:
        """Whether anybody looks at what the model saw."""
        return bool(self._history.get_subscription_count())

    def say_velocity(self, velocity: Velocity) -> None:
        """On cmd_vel."""
        message = self._twist()
        twist = message
        if isinstance(message, TwistStamped):
            message.header.stamp = self._node.get_clock().now().to_msg()
            message.header.frame_id = self._settings.base_frame
            twist = message.twist
        twist.linear.x, twist.angular.z = velocity.forward_m_s, velocity.turn_rad_s
        self._velocity.publish(message)

    def say_zero(self) -> None:
        """Zero velocity, known to have arrived where somebody listens."""
        self.say_velocity(Velocity.ZERO)
        self._velocity.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_TIMEOUT_S))

    def say_event(self, event: Event) -> None:
        """On the topic of its kind."""
        if isinstance(event, DecisionEvent):
            self._decision.publish(String(data=json.dumps(decision_row(event))))
        elif isinstance(event, PrimitiveEvent):
            self._primitive.publish(String(data=json.dumps(primitive_row(event))))
        elif isinstance(event, PlanEvent):
            self._plan.publish(self._path(event.poses))
        elif isinstance(event, EpisodeEvent):
            self._node.get_logger().info(
                f"episode {event.episode}: {event.result.name} after {event.duration_s:.1f} s, "
                f"{event.waiting_s:.1f} s of them waiting"
            )

    def say_history(self, jpeg: bytes) -> None:
        """The frames exactly as the model saw them, oldest first, above its answer."""
        message = CompressedImage(format="jpeg")
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.data = array.array("B", jpeg)
        self._history.publish(message)

    def _path(self, poses: tuple[Pose, ...]) -> Path:
        path = Path()
        path.header.stamp = self._node.get_clock().now().to_msg()
        path.header.frame_id = self.frame_id
        for x_m, y_m, yaw_rad in poses:
            stamped = PoseStamped(header=path.header)
            stamped.pose.position.x, stamped.pose.position.y = x_m, y_m
            stamped.pose.orientation.z = math.sin(yaw_rad / 2)
            stamped.pose.orientation.w = math.cos(yaw_rad / 2)
            path.poses.append(stamped)
        return path

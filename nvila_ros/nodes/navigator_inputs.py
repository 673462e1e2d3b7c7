# SPDX-License-Identifier: Apache-2.0
"""Everything the navigator node hears; each message is checked and stored, nothing else is done."""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, LaserScan
from std_msgs.msg import Bool, String

from nvila_ros import ros_images
from nvila_ros.errors import NvilaError, OdometryError
from nvila_ros.navigator import Navigator
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.ros_main import EVENT_QOS, SENSOR_QOS, STATE_QOS
from nvila_ros.safety import checked_pose, free_ahead_m

_LOG_EVERY_S = 2.0
# Matches every publisher of the emergency stop; the latched twin hears one from before our time.
_EMERGENCY_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
_COLLISION_MONITOR_STOPS = (1,)  # nav2_msgs/CollisionMonitorState: STOP


class NavigatorInputs:
    """Subscriptions of one configured node; `close` removes them."""

    def __init__(
        self,
        node: Node,
        settings: NavigatorConfig,
        navigator: Navigator,
        on_emergency: Callable[[str], None],
        on_frame_id: Callable[[str], None],
    ) -> None:
        self._node, self._settings, self._navigator = node, settings, navigator
        self._on_emergency_stop, self._on_frame_id = on_emergency, on_frame_id
        self._subscriptions: list[Any] = []
        self.num_refusals, self.last_refusal = 0, ""
        self.num_instructions = 0
        if settings.image_transport == "compressed":
            # Remapping `image` moves the compressed topic with it.
            topic = node.resolve_topic_name("image") + "/compressed"
            self._subscribe(CompressedImage, topic, self._on_image, SENSOR_QOS)
        else:
            self._subscribe(Image, "image", self._on_image, SENSOR_QOS)
        self._subscribe(Odometry, "odom", self._on_odometry, SENSOR_QOS)
        self._subscribe(LaserScan, "scan", self._on_scan, SENSOR_QOS)
        self._subscribe(String, "instruction", self._on_instruction, EVENT_QOS)
        # One of the twins does not fit a publisher; that is meant, and not worth a warning.
        quiet = SubscriptionEventCallbacks(incompatible_qos=lambda _event: None)
        for qos in (_EMERGENCY_QOS, STATE_QOS):
            made = node.create_subscription(
                Bool, "emergency_stop", self._on_emergency, qos, event_callbacks=quiet
            )
            self._subscriptions.append(made)
        state = collision_monitor_state()
        if state is not None:
            self._subscribe(state, "collision_monitor_state", self._on_collision_monitor, EVENT_QOS)

    def _subscribe(self, kind: Any, topic: str, callback: Any, qos: Any) -> None:
        options = QoSOverridingOptions.with_default_policies()
        own = copy.copy(qos)  # rclpy writes overrides into what it is given
        made = self._node.create_subscription(
            kind, topic, callback, own, qos_overriding_options=options
        )
        self._subscriptions.append(made)

    def close(self) -> None:
        """Removes the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _on_image(self, message: Image | CompressedImage) -> None:
        try:
            rgb = None
            if self._navigator.wants_images():
                compressed = isinstance(message, CompressedImage)
                convert = ros_images.compressed_to_rgb if compressed else ros_images.to_rgb
                rgb = convert(message)
            now_s = time.monotonic()
            problem = self._navigator.hear_image(rgb, _seconds(message.header.stamp), now_s)
        except NvilaError as error:
            self._refuse(f"image refused: {error}")
        else:
            if problem:
                self._refuse(f"image refused: {problem}")

    def _on_odometry(self, message: Odometry) -> None:
        pose = message.pose.pose
        turn = pose.orientation
        try:
            checked = checked_pose(
                pose.position.x, pose.position.y, (turn.x, turn.y, turn.z, turn.w)
            )
        except OdometryError as error:
            self._refuse(f"odometry refused: {error}")
            return
        self._on_frame_id(message.header.frame_id)
        stamp_s = _seconds(message.header.stamp)
        problem = self._navigator.hear_odometry(checked, time.monotonic(), stamp_s)
        if problem:
            self._refuse(f"odometry refused: {problem}")

    def _on_scan(self, message: LaserScan) -> None:
        free_m = free_ahead_m(
            message.ranges,
            message.angle_min,
            message.angle_increment,
            self._settings.safety.robot_radius_m,
        )
        self._navigator.hear_scan(free_m, time.monotonic())

    def _on_collision_monitor(self, message: Any) -> None:
        stops = message.action_type in _COLLISION_MONITOR_STOPS
        self._navigator.hear_blocked(
            f"the collision monitor stops at {message.polygon_name!r}" if stops else ""
        )

    def _on_instruction(self, message: String) -> None:
        try:
            self._navigator.instruct(message.data, time.monotonic())
        except NvilaError as error:
            self._refuse(f"instruction refused: {error}")
        else:
            self._node.get_logger().info(f"instruction: {message.data!r}")
        self.num_instructions += 1

    def _on_emergency(self, message: Bool) -> None:
        if message.data:  # false clears nothing: that is a service, and somebody's decision
            self._on_emergency_stop("somebody pressed the emergency stop")

    def _refuse(self, reason: str) -> None:
        self.num_refusals += 1
        self.last_refusal = reason
        self._node.get_logger().error(reason, throttle_duration_sec=_LOG_EVERY_S)


def collision_monitor_state() -> Any:
    """Nav2's message where it is installed, else None."""
    try:
        return importlib.import_module("nav2_msgs.msg").CollisionMonitorState
    except (ImportError, AttributeError):
        return None


def _seconds(stamp: Any) -> float:
    return stamp.sec + stamp.nanosec * 1e-9

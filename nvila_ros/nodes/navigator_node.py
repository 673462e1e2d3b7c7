# SPDX-License-Identifier: Apache-2.0
"""ROS shell of the navigator: topics in, `nvila_ros.navigator.Navigator` thinks, cmd_vel out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from sensor_msgs.msg import CompressedImage, Image, LaserScan
from std_msgs.msg import String
from std_srvs.srv import Trigger

from nvila_ros import ros_images, ros_parameters
from nvila_ros.decision_worker import DecisionWorker, Policy
from nvila_ros.errors import ConfigError, ImageError, NvilaError, OdometryError
from nvila_ros.navigator import Navigator
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import (
    DecisionEvent,
    Phase,
    Result,
    Status,
    decision_row,
    primitive_row,
    status_row,
)
from nvila_ros.ros_main import (
    COMMAND_QOS,
    EVENT_QOS,
    SENSOR_QOS,
    STATE_QOS,
    SafeNode,
    run_node,
    steady_clock,
)
from nvila_ros.safety import Velocity, checked_pose, free_ahead_m

_LOG_EVERY_S = 2.0


class NavigatorNode(SafeNode):
    """Callbacks store and return; the worker thread thinks; a steady timer commands.

    All names are relative and can be remapped. Times of silence are measured on the machine's own
    monotonic clock, so that neither a wrong stamp nor a jumping clock can keep the robot moving.
    """

    def __init__(
        self,
        load_policy: Callable[[NavigatorConfig], Policy] | None = None,
        **node_options: Any,
    ) -> None:
        super().__init__("navigator", **node_options)
        problem = ""
        try:
            self.settings = ros_parameters.declare(self, NavigatorConfig)
        except ConfigError as error:
            # The node stays up, still and able to say why.
            problem = f"the configuration is refused: {error}"
            self.settings = ros_parameters.declare_defaults(self, NavigatorConfig)
        loader = load_policy or load_navigation_policy
        self._worker = DecisionWorker(lambda: loader(self.settings))
        self._navigator = Navigator(self.settings, self._worker)
        self._told: Status | None = None
        self._publish_outputs()
        self._subscribe_inputs()
        for name, handler in (
            ("cancel", self._on_cancel),
            ("pause", self._on_pause),
            ("resume", self._on_resume),
        ):
            self.create_service(Trigger, f"~/{name}", handler)
        if problem:
            self._navigator.disable(problem)
        else:
            self._worker.start()
        period_s = 1.0 / self.settings.control_rate_hz
        self.create_timer(period_s, self._on_tick, clock=steady_clock())

    def shut_down(self) -> None:
        """Zero velocity, known to have arrived where somebody listens."""
        self._navigator.disable("the node is ending")
        self._publish_velocity(Velocity.ZERO)
        self._velocity_publisher.wait_for_all_acked(Duration(seconds=0.2))
        self._worker.stop()

    def _publish_outputs(self) -> None:
        kind = TwistStamped if self.settings.enable_stamped_cmd_vel else Twist
        self._velocity_publisher = self.create_publisher(kind, "cmd_vel", COMMAND_QOS)
        self._decision_publisher = self.create_publisher(String, "~/decision", STATE_QOS)
        self._primitive_publisher = self.create_publisher(String, "~/primitive", EVENT_QOS)
        self._state_publisher = self.create_publisher(String, "~/state", STATE_QOS)

    def _subscribe_inputs(self) -> None:
        if self.settings.image_transport == "compressed":
            # Remapping `image` moves the compressed topic with it.
            topic = self.resolve_topic_name("image") + "/compressed"
            self.create_subscription(CompressedImage, topic, self._on_image, SENSOR_QOS)
        else:
            self.create_subscription(Image, "image", self._on_image, SENSOR_QOS)
        self.create_subscription(Odometry, "odom", self._on_odometry, SENSOR_QOS)
        self.create_subscription(LaserScan, "scan", self._on_scan, SENSOR_QOS)
        self.create_subscription(String, "instruction", self._on_instruction, EVENT_QOS)

    def _on_image(self, message: Image | CompressedImage) -> None:
        try:
            rgb = None
            if self._navigator.wants_images():
                compressed = isinstance(message, CompressedImage)
                convert = ros_images.compressed_to_rgb if compressed else ros_images.to_rgb
                rgb = convert(message)
            self._navigator.hear_image(rgb, _seconds(message.header.stamp), time.monotonic())
        except (ImageError, OdometryError) as error:
            self._refuse(f"image refused: {error}")

    def _on_odometry(self, message: Odometry) -> None:
        pose = message.pose.pose
        rotation = pose.orientation
        try:
            checked = checked_pose(
                pose.position.x,
                pose.position.y,
                (rotation.x, rotation.y, rotation.z, rotation.w),
            )
        except OdometryError as error:
            self._refuse(f"odometry refused: {error}")
        else:
            self._navigator.hear_odometry(checked, time.monotonic())

    def _on_scan(self, message: LaserScan) -> None:
        free_m = free_ahead_m(
            message.ranges,
            message.angle_min,
            message.angle_increment,
            self.settings.safety.robot_radius_m,
        )
        self._navigator.hear_scan(free_m, time.monotonic())

    def _on_instruction(self, message: String) -> None:
        try:
            self._navigator.instruct(message.data, time.monotonic())
        except NvilaError as error:
            self._refuse(f"instruction refused: {error}")
        else:
            self.get_logger().info(f"instruction: {message.data!r}")

    def _on_cancel(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        return _answered(response, self._navigator.cancel(), "canceled", "nothing to cancel")

    def _on_pause(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        return _answered(response, self._navigator.pause(), "paused", "nothing to pause")

    def _on_resume(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        resumed = self._navigator.resume(time.monotonic())
        return _answered(response, resumed, "resumed", "it is not paused")

    def _on_tick(self) -> None:
        velocity = self._navigator.tick(time.monotonic(), self.get_clock().now().nanoseconds * 1e-9)
        self._publish_velocity(velocity)
        for event in self._navigator.take_events():
            if isinstance(event, DecisionEvent):
                self._decision_publisher.publish(String(data=json.dumps(decision_row(event))))
            else:
                self._primitive_publisher.publish(String(data=json.dumps(primitive_row(event))))
        status = self._navigator.status
        if status != self._told:
            self._tell(status)

    def _tell(self, status: Status) -> None:
        self._told = status
        self._state_publisher.publish(String(data=json.dumps(status_row(status))))
        log = self.get_logger()
        if status.phase is Phase.FAULT:
            log.error(status.message)
        elif status.result > Result.SUCCEEDED:
            log.warning(f"{status.result.name}: {status.message}")
        elif status.result is Result.SUCCEEDED:
            log.info(f"SUCCEEDED after {status.num_decisions} decisions")

    def _publish_velocity(self, velocity: Velocity) -> None:
        message = TwistStamped() if self.settings.enable_stamped_cmd_vel else Twist()
        twist = message
        if isinstance(message, TwistStamped):
            message.header.stamp = self.get_clock().now().to_msg()
            message.header.frame_id = self.settings.base_frame
            twist = message.twist
        twist.linear.x, twist.angular.z = velocity.forward_m_s, velocity.turn_rad_s
        self._velocity_publisher.publish(message)

    def _refuse(self, reason: str) -> None:
        self.get_logger().error(reason, throttle_duration_sec=_LOG_EVERY_S)


def load_navigation_policy(settings: NavigatorConfig) -> Policy:
    """The policy of the settings; runs in the worker thread."""
    from nvila_ros.models import weights
    from nvila_ros.policy import NavigationPolicy

    path = settings.model_path or Path(weights.__file__).parent / "nano"
    return NavigationPolicy.load(
        path,
        settings.device,
        history=settings.history,
        backend=settings.backend,
        quantizes=settings.round_weights,
    )


def _answered(response: Trigger.Response, done: bool, yes: str, no: str) -> Trigger.Response:
    response.success, response.message = done, yes if done else no
    return response


def _seconds(stamp: Any) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros navigator_node`."""
    return run_node(NavigatorNode, arguments)


if __name__ == "__main__":
    sys.exit(main())

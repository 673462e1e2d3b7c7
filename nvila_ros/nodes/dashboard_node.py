# SPDX-License-Identifier: Apache-2.0
"""ROS side of the dashboard: topics into its state, buttons into messages and service calls.

It has no subscription to cmd_vel: the navigator must not take a spectator for a robot's base.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry, Path
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from nvila_ros import ros_images, ros_parameters
from nvila_ros.dashboard.access import bind, checked_token, page_url
from nvila_ros.dashboard.commands import Answer
from nvila_ros.dashboard.server import end_on_signals, make_app, make_server
from nvila_ros.dashboard.state import DashboardState, Health
from nvila_ros.errors import NvilaError
from nvila_ros.nodes.dashboard_settings import TOKEN_VARIABLE, DashboardConfig
from nvila_ros.ros_main import EVENT_QOS, SENSOR_QOS, STATE_QOS, SafeNode, steady_clock

PICTURE_PERIOD_S = 0.1
LOOK_PERIOD_S = 0.25  # how soon pictures are asked for after a page was opened
MAX_SIDE_PX = 640
QUALITY = 80


class DashboardNode(SafeNode):
    """Hears the navigator, the robot and the simulator; fills `Commands` for the pages."""

    def __init__(self, state: DashboardState | None = None, **node_options: Any) -> None:
        super().__init__("dashboard", **node_options)
        self.settings = ros_parameters.declare(self, DashboardConfig)
        self.state = state or DashboardState()
        self._picture_s = -math.inf
        self._picture_subscriptions: list[Any] = []
        navigator, simulator = self.settings.navigator, self.settings.simulator
        self._prefix = self.resolve_topic_name(navigator).lstrip("/") + ": "
        self._instruction = self.create_publisher(String, "instruction", EVENT_QOS)
        # Latched: the navigator's reliable ear hears it even where the quick one missed it.
        self._emergency = self.create_publisher(Bool, "emergency_stop", STATE_QOS)
        for kind, topic, hear, qos in (
            (String, f"{navigator}/state", self._json(self.state.hear_status), STATE_QOS),
            (String, f"{navigator}/decision", self._json(self.state.hear_decision), STATE_QOS),
            (String, f"{simulator}/episode", self._json(self.state.hear_episode), STATE_QOS),
            (Path, f"{navigator}/plan", self._on_plan, STATE_QOS),
            (String, "instruction", lambda m: self.state.hear_instruction(m.data), EVENT_QOS),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics, EVENT_QOS),
            (Odometry, "odom", self._on_odometry, SENSOR_QOS),
        ):
            self.create_subscription(kind, topic, hear, qos)
        names = [f"{navigator}/{n}" for n in ("pause", "resume", "cancel", "clear_emergency_stop")]
        names += [f"{simulator}/{name}" for name in ("reset", "random_episode")]
        self._triggers = {
            _generic(name, navigator, simulator): self.create_client(Trigger, name)
            for name in names
        }
        self._simulator_parameters = self.create_client(
            SetParameters, f"{simulator}/set_parameters"
        )
        self.create_timer(LOOK_PERIOD_S, self._look, clock=steady_clock())

    def instruct(self, text: str) -> None:
        """As if somebody had published it."""
        self._instruction.publish(String(data=text))

    def emergency_stop(self) -> None:
        """True, which stays until somebody clears it."""
        self._emergency.publish(Bool(data=True))

    def call(self, service: str) -> Future[Answer]:
        """Calls a Trigger; the answer comes on the executor's thread."""
        if service.endswith("clear_emergency_stop"):
            self._emergency.publish(Bool(data=False))  # else a later navigator would hear the old
        return self._ask(
            self._triggers[service],
            Trigger.Request(),
            lambda response: Answer(response.success, response.message),
        )

    def move_to_seed(self, seed: int) -> Future[Answer]:
        """Sets the simulator's parameter."""
        value = Parameter("seed", value=seed).to_parameter_msg()

        def answer(response: SetParameters.Response) -> Answer:
            result = response.results[0]
            return Answer(result.successful, result.reason or f"apartment {seed} is being built")

        return self._ask(
            self._simulator_parameters, SetParameters.Request(parameters=[value]), answer
        )

    def _ask(self, client: Any, request: Any, answer: Callable[[Any], Answer]) -> Future[Answer]:
        told: Future[Answer] = Future()
        if not client.service_is_ready():
            told.set_result(Answer(False, f"{client.srv_name} is not there: is the node running?"))
            return told

        def done(future: Any) -> None:
            if told.set_running_or_notify_cancel():
                try:
                    told.set_result(answer(future.result()))
                except Exception as error:  # whatever the middleware raises belongs to the asker
                    told.set_exception(error)

        client.call_async(request).add_done_callback(done)
        return told

    def _json(self, hear: Callable[[dict[str, Any]], None]) -> Callable[[String], None]:
        """Hands on an object; what is none is logged, and the page stays as it was."""

        def on_message(message: String) -> None:
            try:
                row = json.loads(message.data)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, got {type(row).__name__}")
            except ValueError as error:
                self.get_logger().warning(f"a message is no JSON object: {error}")
            else:
                hear(row)

        return on_message

    def _look(self) -> None:
        """Asks for pictures while somebody looks, and not otherwise."""
        looks = self.state.num_watchers > 0
        if looks and not self._picture_subscriptions:
            strip = f"{self.settings.navigator}/history/compressed"
            camera: tuple[Any, str, Any] = (Image, "image", self._on_image)
            if self.settings.image_transport == "compressed":
                topic = self.resolve_topic_name("image") + "/compressed"
                camera = (CompressedImage, topic, self._on_compressed)
            self._picture_subscriptions = [
                self.create_subscription(*camera, SENSOR_QOS),
                self.create_subscription(CompressedImage, strip, self._on_strip, EVENT_QOS),
            ]
        elif not looks and self._picture_subscriptions:
            for subscription in self._picture_subscriptions:
                self.destroy_subscription(subscription)
            self._picture_subscriptions = []

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._picture_s < PICTURE_PERIOD_S * 0.9:
            return False
        self._picture_s = now_s
        return True

    def _on_image(self, message: Image) -> None:
        if not self._is_due():
            return
        try:
            rgb = ros_images.to_rgb(message)
        except NvilaError as error:
            self.get_logger().warning(f"image refused: {error}", throttle_duration_sec=5.0)
            return
        longest = max(rgb.shape[:2])
        if longest > MAX_SIDE_PX:
            scale = MAX_SIDE_PX / longest
            rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        self.state.hear_picture("camera", encoded.tobytes())

    def _on_compressed(self, message: CompressedImage) -> None:
        if self._is_due():
            self.state.hear_picture("camera", bytes(message.data))

    def _on_strip(self, message: CompressedImage) -> None:
        self.state.hear_picture("strip", bytes(message.data))

    def _on_odometry(self, message: Odometry) -> None:
        pose, twist = message.pose.pose, message.twist.twist
        place = (pose.position.x, pose.position.y, _yaw_rad(pose.orientation))
        self.state.hear_pose(place, (twist.linear.x, twist.angular.z))

    def _on_plan(self, message: Path) -> None:
        poses = (stamped.pose for stamped in message.poses)
        self.state.hear_plan([(p.position.x, p.position.y, _yaw_rad(p.orientation)) for p in poses])

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(self._prefix):
                values = {value.key: value.value for value in status.values}
                level = int.from_bytes(status.level, "little")
                task = status.name.removeprefix(self._prefix)
                self.state.hear_health(task, Health(level, status.message, values))


def _generic(name: str, navigator: str, simulator: str) -> str:
    """Pages know the services by generic names, whatever the nodes are called."""
    node, _, service = name.rpartition("/")
    return f"{'navigator' if node == navigator else 'simulator'}/{service}"


def _yaw_rad(turn: Any) -> float:
    return 2.0 * math.atan2(turn.z, turn.w)


def serve(arguments: list[str] | None = None) -> None:
    """Serves the page until Ctrl-C or SIGTERM; NvilaError when it cannot begin."""
    # The server ends on Ctrl-C and SIGTERM; ROS is closed after it.
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = DashboardNode()
        settings = node.settings
        token = checked_token(
            os.environ.get(TOKEN_VARIABLE, ""), settings.host, settings.allow_remote
        )
        listening = bind(settings.host, settings.port)
        port = listening.getsockname()[1]
        server = make_server(make_app(node.state, node, token, port))
        end_on_signals(server)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        ended = threading.Event()
        thread = threading.Thread(target=_spin, args=(executor, ended), daemon=True)
        thread.start()
        print(f"dashboard: {page_url(settings.host, port, token)}", flush=True)
        try:
            server.run(sockets=[listening])
        finally:
            ended.set()
            thread.join(2.0)
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def _spin(executor: SingleThreadedExecutor, ended: threading.Event) -> None:
    try:
        while not ended.is_set() and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros dashboard_node`; exit code 3 when it cannot begin."""
    try:
        serve(arguments)
    except NvilaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

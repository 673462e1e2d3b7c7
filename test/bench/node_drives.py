# SPDX-License-Identifier: Apache-2.0
"""Simulator and navigator as processes that drive episode after episode, and a clock on them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from nvila_ros.nodes.child_processes import ChildProcesses
from nvila_ros.ros_environment import process_environment
from nvila_ros.ros_main import COMMAND_QOS, EVENT_QOS, SENSOR_QOS, STATE_QOS

START_TIMEOUT_S = 90.0


@dataclass
class Heard:
    """What the commands and decisions of all episodes came to; seconds on this machine's clock."""

    intervals_s: list[float] = field(default_factory=list)  # between commands
    first_command_s: list[float] = field(default_factory=list)  # from image to motion, both here
    overhead_s: list[float] = field(default_factory=list)  # of that, beside the model
    latency_s: list[float] = field(default_factory=list)  # of the model
    results: list[str] = field(default_factory=list)
    waiting_shares: list[float] = field(default_factory=list)
    num_decisions: int = 0


class Drives:
    """A context: two node processes and this listener, in a ROS domain of their own."""

    def __init__(
        self,
        log_folder: Path,
        image_px: tuple[int, int] = (224, 224),
        seed: int = 900_000,
        **navigator: Any,
    ) -> None:
        self.heard = Heard()
        environment = process_environment()
        environment["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 90)
        environment |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}
        environment.setdefault("LP_NUM_THREADS", "0")
        os.environ.update(environment)
        self.children = ChildProcesses(os.environ, log_folder)
        self._parameters = {
            "simulator": {
                "seed": seed,
                "image_width_px": image_px[0],
                "image_height_px": image_px[1],
            },
            "navigator": {"use_sim_time": "true", **navigator},
        }
        self.state: dict[str, Any] = {}
        self._images: dict[float, float] = {}  # stamp -> arrival
        self._decision: tuple[float, float] | None = None  # (stamp, latency) not yet obeyed
        self._commanded_s = 0.0
        self._stands = True
        self.instruction, self.seed = "", -1

    def __enter__(self) -> Drives:
        self.children.__enter__()
        for name, parameters in self._parameters.items():
            words = [w for pair in parameters.items() for w in ("-p", "{}:={}".format(*pair))]
            self.children.start(name, ["-m", f"nvila_ros.nodes.{name}_node", "--ros-args", *words])
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("drives")
        subscribe = self.node.create_subscription
        subscribe(Image, "image", self._on_image, SENSOR_QOS)
        subscribe(TwistStamped, "cmd_vel", self._on_command, COMMAND_QOS)
        subscribe(String, "navigator/state", self._on_state, STATE_QOS)
        subscribe(String, "navigator/decision", self._on_decision, STATE_QOS)
        subscribe(String, "simulator/episode", self._on_episode, STATE_QOS)
        self._instructions = self.node.create_publisher(String, "instruction", EVENT_QOS)
        self._reset = self.node.create_client(Trigger, "simulator/reset")
        self._simulator = self.node.create_client(SetParameters, "simulator/set_parameters")
        self.spin_until(lambda: self._is_ready(), START_TIMEOUT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self.node.destroy_node()
        rclpy.try_shutdown()
        self.children.__exit__(*error)

    def _is_ready(self) -> bool:
        return bool(
            self.instruction
            and self._images
            and self.state.get("state") == "idle"
            and self._instructions.get_subscription_count()
        )

    def spin_until(self, is_done: Any, timeout_s: float) -> None:
        """Listens until it is so; TimeoutError otherwise."""
        end_s = time.monotonic() + timeout_s
        while not is_done():
            rclpy.spin_once(self.node, timeout_sec=0.05)
            if ended := self.children.ended():
                raise RuntimeError(f"{ended[0]} ended:\n{self.children.last_lines(ended[0])}")
            if time.monotonic() > end_s:
                raise TimeoutError(f"not within {timeout_s} s; the navigator says {self.state}")

    def move(self, seed: int) -> None:
        """To the apartment of this seed; RuntimeError where it has no episode."""
        if seed == self.seed:
            return
        parameter = Parameter("seed", value=seed).to_parameter_msg()
        future = self._simulator.call_async(SetParameters.Request(parameters=[parameter]))
        self.spin_until(future.done, 10.0)
        told, self.seed = self.seed, -1
        self.spin_until(lambda: self.seed >= 0, 60.0)
        if self.seed != seed:
            raise RuntimeError(f"the simulator stays in apartment {told}: {seed} has no episode")

    def drive(self, timeout_s: float = 180.0) -> str:
        """One episode from the start; its result."""
        future = self._reset.call_async(Trigger.Request())
        self.spin_until(future.done, 10.0)
        settled_s = time.monotonic() + 0.3
        self.spin_until(lambda: time.monotonic() > settled_s, 10.0)
        number = self.state["episode"]
        self._commanded_s = 0.0
        self._instructions.publish(String(data=self.instruction))
        self.spin_until(
            lambda: self.state["episode"] > number and self.state["result"] is not None, timeout_s
        )
        self.heard.results.append(self.state["result"])
        self.heard.waiting_shares.append(self.state["waiting_share"])
        return str(self.state["result"])

    def process_ids(self) -> list[int]:
        """Of both nodes and the model's own process."""
        found = self.children.process_ids()
        for process_id in list(found):
            for task in Path(f"/proc/{process_id}/task").iterdir():
                found += [int(word) for word in (task / "children").read_text().split()]
        return sorted(set(found))

    def _on_image(self, message: Image) -> None:
        self._images[_seconds(message.header.stamp)] = time.monotonic()
        while len(self._images) > 100:
            del self._images[next(iter(self._images))]

    def _on_command(self, message: TwistStamped) -> None:
        now_s = time.monotonic()
        if self._commanded_s:
            self.heard.intervals_s.append(now_s - self._commanded_s)
        self._commanded_s = now_s
        moves = bool(message.twist.linear.x or message.twist.angular.z)
        if moves and self._stands:
            self._first = now_s
        self._stands = not moves

    def _on_decision(self, message: String) -> None:
        """Published after the command that it led to: the robot stood, and this made it move."""
        row = json.loads(message.data)
        self.heard.num_decisions += 1
        self.heard.latency_s.append(row["latency_s"])
        seen_s = self._images.get(row["stamp_s"])
        first_s = getattr(self, "_first", 0.0)
        if seen_s is not None and first_s > seen_s and time.monotonic() - first_s < 0.02:
            self.heard.first_command_s.append(first_s - seen_s)
            self.heard.overhead_s.append(first_s - seen_s - row["latency_s"])

    def _on_state(self, message: String) -> None:
        self.state = json.loads(message.data)

    def _on_episode(self, message: String) -> None:
        row = json.loads(message.data)
        self.instruction, self.seed = row["instruction"], row["seed"]


def _seconds(stamp: Any) -> float:
    return stamp.sec + stamp.nanosec * 1e-9

# SPDX-License-Identifier: Apache-2.0
"""Runs one node until Ctrl-C or SIGTERM, and lets it say its last word: zero velocity."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from nvila_ros.errors import NvilaError

# The book's profiles: sensors may be lost but never late, commands arrive, states wait for readers.
SENSOR_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
COMMAND_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
EVENT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
STATE_QOS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class SafeNode(Node):
    """A node with an orderly end."""

    def shut_down(self) -> None:
        """Called once, while it can still publish."""


class SafeLifecycleNode(LifecycleNode):
    """A lifecycle node with an orderly end."""

    def shut_down(self) -> None:
        """Called once, while it can still publish."""


def steady_clock() -> Clock:
    """For timers that must run on when simulated time stands still."""
    return Clock(clock_type=ClockType.STEADY_TIME)


def run_node(
    make_node: Callable[[], SafeNode | SafeLifecycleNode], arguments: list[str] | None = None
) -> int:
    """Exit code 0 after a wanted end, 3 when the node could not be made."""
    logging.basicConfig(format="[%(levelname)s] %(name)s: %(message)s")  # of rooms without ROS
    logging.getLogger("nvila_ros").setLevel(logging.INFO)
    # Without handlers of its own rclpy closes its context at Ctrl-C, before we can publish zero.
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    wanted_end = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: wanted_end.append(received))
    node = None
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not wanted_end and rclpy.ok():
            executor.spin_once(timeout_sec=0.1)
    except ExternalShutdownException:
        pass
    except NvilaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    finally:
        if node is not None:
            node.shut_down()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0

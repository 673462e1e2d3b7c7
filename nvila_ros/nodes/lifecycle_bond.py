# SPDX-License-Identifier: Apache-2.0
"""The bond that Nav2's lifecycle manager watches: a heartbeat that ends with the process.

`bond/msg/Status` comes with Nav2. Where it is not installed, or with `bond: none`, there is
none, and the manager's `bond_timeout` must be 0.0.
"""

from __future__ import annotations

import importlib
import uuid
from typing import Any

from rclpy.node import Node

from nvila_ros.ros_main import EVENT_QOS, steady_clock

HEARTBEAT_PERIOD_S = 0.1  # as nav2_util's own nodes
HEARTBEAT_TIMEOUT_S = 4.0
TOPIC = "bond"


def bond_message() -> Any:
    """The message where it is installed, else None."""
    try:
        return importlib.import_module("bond.msg").Status
    except (ImportError, AttributeError):
        return None


class Bond:
    """Says every 0.1 s that the node lives, and once that it has left."""

    def __init__(self, node: Node, message_type: Any) -> None:
        self._node, self._message_type = node, message_type
        self._instance_id = str(uuid.uuid4())
        self._publisher = node.create_publisher(message_type, TOPIC, EVENT_QOS)
        self._timer = node.create_timer(
            HEARTBEAT_PERIOD_S, lambda: self._say(True), clock=steady_clock()
        )

    def end(self) -> None:
        """The manager is told that this was wanted."""
        self._node.destroy_timer(self._timer)
        self._say(False)
        self._node.destroy_publisher(self._publisher)

    def _say(self, is_active: bool) -> None:
        message = self._message_type()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.id, message.instance_id = self._node.get_name(), self._instance_id
        message.active = is_active
        message.heartbeat_timeout = HEARTBEAT_TIMEOUT_S
        message.heartbeat_period = HEARTBEAT_PERIOD_S
        self._publisher.publish(message)

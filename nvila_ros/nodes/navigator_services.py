# SPDX-License-Identifier: Apache-2.0
"""The navigator node's services: cancel, pause, resume, clear_emergency_stop (std_srvs/Trigger)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger

from nvila_ros.navigator import Navigator


class NavigatorServices:
    """Services of one configured node; `close` removes them."""

    def __init__(self, node: Node, navigator: Navigator) -> None:
        self._node = node
        self._services = [
            node.create_service(Trigger, f"~/{name}", _handler(act, yes, no))
            for name, act, yes, no in (
                ("cancel", navigator.cancel, "canceled", "nothing to cancel"),
                ("pause", navigator.pause, "paused", "nothing to pause"),
                (
                    "resume",
                    lambda: navigator.resume(time.monotonic()),
                    "resumed",
                    "it is not paused",
                ),
                (
                    "clear_emergency_stop",
                    navigator.clear_emergency_stop,
                    "cleared",
                    "there was no emergency stop",
                ),
            )
        ]

    def close(self) -> None:
        """Removes the services."""
        for service in self._services:
            self._node.destroy_service(service)


def _handler(act: Callable[[], bool], yes: str, no: str) -> Callable[..., Any]:
    """A callback that acts and says whether there was something to do."""

    def handle(_request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = act()
        response.message = yes if response.success else no
        return response

    return handle

# SPDX-License-Identifier: Apache-2.0
"""The other end of `habitat_server.py`: episodes in, images and poses in ROS's axes out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvila_ros.errors import NvilaError, install_hint
from nvila_ros.evaluation.vlnce_episodes import (
    VlnCeEpisode,
    habitat_from_ros,
    habitat_from_yaw,
    ros_from_habitat,
    yaw_from_habitat,
)

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
TIMEOUT_S = 120.0  # loading a scan takes its time


class HabitatError(NvilaError):
    """The Habitat server does not answer, or refuses."""


@dataclass(frozen=True)
class View:
    """Where the agent is and what it sees."""

    rgb: np.ndarray  # (H, W, 3) uint8
    position_m: np.ndarray  # (3,) in ROS's axes
    yaw_rad: float
    goal_distance_m: float  # geodesic
    collided: bool


class HabitatClient:
    """One agent in one server."""

    def __init__(self, endpoint: str = DEFAULT_ENDPOINT, timeout_s: float = TIMEOUT_S) -> None:
        try:
            import zmq
        except ImportError as error:
            raise HabitatError(
                "pyzmq, which talks to the Habitat server, is not installed: "
                + install_hint("habitat")
            ) from error
        self.endpoint, self._timeout_s = endpoint, timeout_s
        self._socket: Any = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def reset(self, episode: VlnCeEpisode) -> View:
        """At the start of an episode."""
        return self._ask(
            command="reset",
            scene_id=episode.scene_id,
            start_position=habitat_from_ros(episode.start_m).tolist(),
            start_rotation=habitat_from_yaw(episode.start_yaw_rad),
            goal_position=habitat_from_ros(episode.goal_m).tolist(),
        )

    def step(self, action: str) -> View:
        """One of 'move_forward' (0.25 m), 'turn_left', 'turn_right' (15 degrees)."""
        return self._ask(command="step", action=action)

    def drive(self, forward_m_s: float, turn_rad_s: float, seconds: float) -> View:
        """A velocity for a while."""
        return self._ask(
            command="drive", forward_m_s=forward_m_s, turn_rad_s=turn_rad_s, seconds=seconds
        )

    def _ask(self, **request: Any) -> View:
        self._socket.send(json.dumps(request).encode())
        if not self._socket.poll(int(1000 * self._timeout_s)):
            raise HabitatError(
                f"no answer from {self.endpoint} within {self._timeout_s:.0f} s; start "
                "nvila_ros/evaluation/habitat_server.py in Habitat's environment"
            )
        head, picture = self._socket.recv_multipart()
        answer = json.loads(head)
        if "error" in answer:
            raise HabitatError(
                f"the Habitat server refuses {request['command']}: {answer['error']}"
            )
        return View(
            rgb=np.frombuffer(picture, np.uint8).reshape(answer["shape"]),
            position_m=ros_from_habitat(answer["position"]),
            yaw_rad=yaw_from_habitat(answer["rotation"]),
            goal_distance_m=float(answer["goal_distance_m"]),
            collided=bool(answer["collided"]),
        )

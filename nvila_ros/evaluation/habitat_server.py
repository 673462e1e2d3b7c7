# SPDX-License-Identifier: Apache-2.0

"""Habitat behind a ZeroMQ socket: runs in Habitat's own Python, imports nothing of ours.

    conda activate habitat            # Python 3.8 to 3.10, habitat-sim 0.2.4 (not 0.1.7)
    pip install "pyzmq>=22" numpy
    python habitat_server.py --scenes data/scene_datasets --endpoint tcp://127.0.0.1:5555

One request is one JSON frame; the answer is one JSON frame and the camera image as (H, W, 3) uint8
RGB bytes. Positions and quaternions (x, y, z, w) are in Habitat's axes; the client converts them.

    {"command": "reset", "scene_id", "start_position", "start_rotation", "goal_position"}
    {"command": "step", "action": "move_forward" | "turn_left" | "turn_right"} 0.25 m, 15 degrees
    {"command": "drive", "forward_m_s", "turn_rad_s", "seconds"}               along the navmesh
    {"command": "look"}                                                        where it is now

Habitat cannot be installed on the machines that build this package. `serve` is tested there with a
world of the same methods over the embedded simulator; `HabitatWorld` itself is not.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

STEP_M, STEP_RAD = 0.25, math.radians(15.0)
ACTIONS = {"move_forward": (STEP_M, 0.0), "turn_left": (0.0, STEP_RAD)}
ACTIONS["turn_right"] = (0.0, -STEP_RAD)
SUBSTEP_M = 0.05  # a motion along the navmesh is made of pieces this long


class HabitatWorld:
    """An upright agent on the navmesh of one scene; heading 0 looks along -z, left is positive."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._simulator: Any = None
        self._scene_id = ""
        self._heading_rad = 0.0
        self._goal = np.zeros(3)
        self.collided = False

    def reset(self, request: dict[str, Any]) -> None:
        """Puts the agent at an episode's start; another scene is loaded first."""
        if request["scene_id"] != self._scene_id:
            self._load(request["scene_id"])
        self._goal = np.array(request["goal_position"], np.float32)
        _, y, _, w = request["start_rotation"]
        self._heading_rad = 2.0 * math.atan2(y, w)
        self.collided = False
        self._place(np.array(request["start_position"], np.float32))

    def move(self, forward_m: float, turn_rad: float) -> None:
        """Turns, then moves straight ahead; walls stop it, or let it slide."""
        self._heading_rad += turn_rad
        position = self._simulator.get_agent(0).state.position
        self.collided = False
        for _ in range(max(1, math.ceil(abs(forward_m) / SUBSTEP_M)) if forward_m else 0):
            step_m = forward_m / max(1, math.ceil(abs(forward_m) / SUBSTEP_M))
            wanted = position + step_m * self._ahead()
            finder = self._simulator.pathfinder
            slides = self._options.sliding
            taken = finder.try_step(position, wanted) if slides else None
            taken = finder.try_step_no_sliding(position, wanted) if taken is None else taken
            driven_m = float(np.linalg.norm((taken - position)[[0, 2]]))
            self.collided |= driven_m < abs(step_m) - 1e-3
            position = taken
        self._place(position)

    def view(self) -> tuple[list[float], list[float], float, np.ndarray]:
        """(position, quaternion, geodesic distance to the goal, (H, W, 3) uint8 RGB)."""
        state = self._simulator.get_agent(0).state
        rgb = self._simulator.get_sensor_observations()["rgb"][..., :3]
        rotation = [0.0, math.sin(self._heading_rad / 2), 0.0, math.cos(self._heading_rad / 2)]
        return [float(v) for v in state.position], rotation, self._distance(state.position), rgb

    def _ahead(self) -> np.ndarray:
        return np.array([-math.sin(self._heading_rad), 0.0, -math.cos(self._heading_rad)])

    def _distance(self, position: np.ndarray) -> float:
        import habitat_sim

        path = habitat_sim.ShortestPath()
        path.requested_start, path.requested_end = position, self._goal
        self._simulator.pathfinder.find_path(path)
        return float(path.geodesic_distance)

    def _place(self, position: np.ndarray) -> None:
        import habitat_sim

        state = habitat_sim.AgentState()
        state.position = position
        up = np.array([0.0, 1.0, 0.0])
        state.rotation = habitat_sim.utils.common.quat_from_angle_axis(self._heading_rad, up)
        self._simulator.get_agent(0).set_state(state)

    def _load(self, scene_id: str) -> None:
        import habitat_sim

        if self._simulator is not None:
            self._simulator.close()
        options = self._options
        backend = habitat_sim.SimulatorConfiguration()
        backend.scene_id = str(Path(options.scenes) / scene_id)
        sensor = habitat_sim.CameraSensorSpec()
        sensor.uuid, sensor.resolution = "rgb", [options.height_px, options.width_px]
        sensor.hfov, sensor.position = options.hfov_deg, [0.0, options.camera_height_m, 0.0]
        agent = habitat_sim.agent.AgentConfiguration(
            height=1.5, radius=0.1, sensor_specifications=[sensor]
        )
        self._simulator = habitat_sim.Simulator(habitat_sim.Configuration(backend, [agent]))
        self._scene_id = scene_id


def answer(world: Any, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """One request to a world with `reset`, `move`, `view` and `collided`."""
    command = request.get("command")
    if command == "reset":
        world.reset(request)
    elif command == "step":
        world.move(*ACTIONS[request["action"]])
    elif command == "drive":
        seconds = float(request["seconds"])
        world.move(request["forward_m_s"] * seconds, request["turn_rad_s"] * seconds)
    elif command != "look":
        raise ValueError(f"command {command!r} is unknown; expected reset, step, drive or look")
    position, rotation, distance, rgb = world.view()
    head = {
        "position": position,
        "rotation": rotation,
        "goal_distance_m": distance,
        "collided": bool(world.collided),
        "shape": list(rgb.shape),
    }
    return head, np.ascontiguousarray(rgb, np.uint8).tobytes()


def serve(world: Any, endpoint: str, is_ended: Any = None) -> None:
    """Answers one request after the other; an error is an answer, not an end."""
    import zmq

    socket: Any = zmq.Context.instance().socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(endpoint)
    while is_ended is None or not is_ended():
        if not socket.poll(200):
            continue
        try:
            head, picture = answer(world, json.loads(socket.recv()))
        except Exception as error:  # whatever Habitat throws: the client is told
            head, picture = {"error": f"{type(error).__name__}: {error}"}, b""
        socket.send_multipart([json.dumps(head).encode(), picture])
    socket.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", required=True, help="folder that holds mp3d/")
    parser.add_argument("--endpoint", default="tcp://127.0.0.1:5555")
    parser.add_argument("--width-px", type=int, default=512)
    parser.add_argument("--height-px", type=int, default=512)
    parser.add_argument("--hfov-deg", type=float, default=90.0)
    parser.add_argument("--camera-height-m", type=float, default=1.25)
    parser.add_argument("--no-sliding", dest="sliding", action="store_false", help="RxR's rule")
    options = parser.parse_args()
    serve(HabitatWorld(options), options.endpoint)


if __name__ == "__main__":
    main()

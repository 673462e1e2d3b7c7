# SPDX-License-Identifier: Apache-2.0
"""Starts the embedded simulator and the navigator: ros2 launch nvila_ros simulation.launch.py."""

from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from nvila_ros.ros_environment import share_folder
from nvila_ros.ros_launch import declared, given_stamped, navigator, own_node, reader

SHARE = share_folder()
# name, default, description; the navigator's own arguments are shown and taken too
ARGUMENTS = (
    ("simulator_params_file", str(SHARE / "config" / "simulator.yaml"), "The simulator's settings"),
    ("seed", "", "Apartment, start and goal; empty is the file's"),
    ("episode_file", "", "File of episodes instead of a seed"),
    ("real_time_factor", "", "Simulated seconds per second of wall time"),
)


def start_simulator(context: LaunchContext) -> list[Node]:
    """The node, once the arguments are known."""
    given = reader(context)
    parameters: dict[str, Any] = {}
    if given("seed"):
        parameters["seed"] = int(given("seed"))
    if given("episode_file"):
        parameters["episode_file"] = str(Path(given("episode_file")).expanduser())
    if given("real_time_factor"):
        parameters["real_time_factor"] = float(given("real_time_factor"))
    parameters |= given_stamped(given)
    topics = ("image", "odom", "scan", "cmd_vel")
    return [own_node("simulator", given, [given("simulator_params_file"), parameters], topics)]


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    return LaunchDescription(
        [
            *declared(ARGUMENTS),
            navigator(use_sim_time="true"),
            OpaqueFunction(function=start_simulator),
        ]
    )

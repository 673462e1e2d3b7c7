# SPDX-License-Identifier: Apache-2.0
"""Starts the embedded simulator and the navigator: ros2 launch nvila_ros simulation.launch.py."""

import os
from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from nvila_ros.ros_environment import added_environment, share_folder

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

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {}
    if given("seed"):
        parameters["seed"] = int(given("seed"))
    if given("episode_file"):
        parameters["episode_file"] = str(Path(given("episode_file")).expanduser())
    if given("real_time_factor"):
        parameters["real_time_factor"] = float(given("real_time_factor"))
    if given("enable_stamped_cmd_vel"):
        parameters["enable_stamped_cmd_vel"] = yaml.safe_load(given("enable_stamped_cmd_vel"))
    topics = ("image", "odom", "scan", "cmd_vel")
    return [
        Node(
            package="nvila_ros",
            executable="simulator_node",
            name="simulator",
            namespace=given("namespace"),
            parameters=[given("simulator_params_file"), parameters],
            remappings=[(topic, given(f"{topic}_topic")) for topic in topics],
            arguments=["--ros-args", "--log-level", given("log_level")],
            additional_env=added_environment(os.environ),
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in ARGUMENTS
    ]
    navigator = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "navigate.launch.py")),
        launch_arguments={"use_sim_time": "true"}.items(),
    )
    return LaunchDescription([*declared, navigator, OpaqueFunction(function=start_simulator)])

# SPDX-License-Identifier: Apache-2.0
"""Habitat and the navigator: ros2 launch nvila_ros habitat.launch.py data:=<episodes>.

Habitat itself runs in its own Python environment, started before this:
python nvila_ros/evaluation/habitat_server.py --scenes data/scene_datasets
"""

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
    ("data", "", "Folder that holds <split>/<split>.json.gz of VLN-CE"),
    ("dataset", "r2r", "Form of the files: r2r or rxr"),
    ("split", "val_unseen", "Which episodes"),
    ("episode_index", "0", "Which one of them"),
    ("endpoint", "tcp://127.0.0.1:5555", "Where habitat_server.py listens"),
)


def start_habitat(context: LaunchContext) -> list[Node]:
    """The bridge node, once the arguments are known."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {name: given(name) for name in ("dataset", "split", "endpoint")}
    parameters["data"] = str(Path(given("data")).expanduser())
    parameters["episode_index"] = int(given("episode_index"))
    if given("enable_stamped_cmd_vel"):
        parameters["enable_stamped_cmd_vel"] = yaml.safe_load(given("enable_stamped_cmd_vel"))
    topics = ("image", "odom", "cmd_vel")
    return [
        Node(
            package="nvila_ros",
            executable="habitat_node",
            name="habitat",
            namespace=given("namespace"),
            parameters=[parameters],
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
    return LaunchDescription([*declared, navigator, OpaqueFunction(function=start_habitat)])

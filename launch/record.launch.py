# SPDX-License-Identifier: Apache-2.0
"""Records a drive: ros2 launch nvila_ros record.launch.py image_topic:=/camera/image_raw."""

import os
from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from nvila_ros.ros_environment import added_environment

# name, default, description; as in navigate.launch.py
ARGUMENTS = (
    ("namespace", "", "Namespace of the robot; all names are relative"),
    ("image_topic", "image", "Camera image; <topic>/compressed is preferred where it exists"),
    ("odom_topic", "odom", "nav_msgs/Odometry"),
    ("cmd_vel_topic", "cmd_vel", "Velocities, of the navigator or of a joystick"),
    ("instruction_topic", "instruction", "std_msgs/String: where to go"),
    ("log_level", "info", "debug, info, warn or error"),
)
# These become parameters; empty leaves the node's default.
PARAMETERS = (
    ("output", "", "File to write; empty is drive_<date>_<time>.mcap"),
    ("instruction", "", "What the robot is told, where nobody else says it (joystick)"),
    ("jpeg_quality", "", "Of raw images, which are compressed"),
    ("max_image_rate_hz", "", "Images above this rate are dropped; 0 keeps all"),
    ("scan", "", "true records the lidar too"),
    ("extra_topics", "", "More topics, separated by commas"),
)
TEXTS = ("output", "instruction", "extra_topics")


def start(context: LaunchContext) -> list[Node]:
    """The node, once the arguments are known."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {
        name: given(name) if name in TEXTS else yaml.safe_load(given(name))
        for name, _, _ in PARAMETERS
        if given(name)
    }
    if "output" in parameters:
        parameters["output"] = str(Path(given("output")).expanduser())
    if "max_image_rate_hz" in parameters:
        parameters["max_image_rate_hz"] = float(parameters["max_image_rate_hz"])
    topics = ("image", "odom", "cmd_vel", "instruction")
    return [
        Node(
            package="nvila_ros",
            executable="recorder_node",
            name="recorder",
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
        for name, default, text in (*ARGUMENTS, *PARAMETERS)
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])

# SPDX-License-Identifier: Apache-2.0
"""Records a drive: ros2 launch nvila_ros record.launch.py image_topic:=/camera/image_raw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from nvila_ros.ros_launch import declared, given_bool, own_node, reader

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
NUMBERS: dict[str, Callable[[str], Any]] = {"jpeg_quality": int, "max_image_rate_hz": float}


def start(context: LaunchContext) -> list[Node]:
    """The node, once the arguments are known."""
    given = reader(context)
    parameters: dict[str, Any] = {
        name: NUMBERS.get(name, str)(given(name)) for name, _, _ in PARAMETERS if given(name)
    }
    if "scan" in parameters:
        parameters["scan"] = given_bool(given, "scan")
    if "output" in parameters:
        parameters["output"] = str(Path(given("output")).expanduser())
    topics = ("image", "odom", "cmd_vel", "instruction")
    return [own_node("recorder", given, [parameters], topics)]


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    return LaunchDescription([*declared((*ARGUMENTS, *PARAMETERS)), OpaqueFunction(function=start)])

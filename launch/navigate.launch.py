# SPDX-License-Identifier: Apache-2.0
"""Starts the navigator: ros2 launch nvila_ros navigate.launch.py image_topic:=/camera/image_raw."""

import os
from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from nvila_ros.ros_environment import added_environment, share_folder

# name, default, description
ARGUMENTS = (
    ("namespace", "", "Namespace of the node; all its names are relative"),
    ("use_sim_time", "false", "Take the time from /clock"),
    (
        "params_file",
        str(share_folder() / "config" / "navigator.yaml"),
        "Every parameter; the arguments below win over it where they are given",
    ),
    ("log_level", "info", "debug, info, warn or error"),
    ("image_topic", "image", "Camera image; with image_transport:=compressed, <topic>/compressed"),
    ("odom_topic", "odom", "nav_msgs/Odometry"),
    ("scan_topic", "scan", "sensor_msgs/LaserScan for the obstacle stop; may be silent"),
    ("cmd_vel_topic", "cmd_vel", "Where velocities go; cmd_vel_nav beside Nav2"),
    ("instruction_topic", "instruction", "std_msgs/String: where to go"),
)
# These become parameters; empty leaves the file's value.
PARAMETERS = (
    ("model_path", "", "Checkpoint folder; empty is the file's, by default the shipped model"),
    ("device", "", "Torch device of the model: cpu, cuda, auto"),
    ("backend", "", "kernels is the fast path of a CUDA GPU, torch the plain one, auto picks"),
    ("execute", "", "false decides and reports but never moves the robot"),
    ("image_transport", "", "raw or compressed"),
    ("enable_stamped_cmd_vel", "", "false for Twist instead of TwistStamped"),
)


def start(context: LaunchContext) -> list[Node]:
    """The node, once the arguments are known."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {name: yaml.safe_load(given(name)) for name, _, _ in PARAMETERS if given(name)}
    if "model_path" in parameters:
        parameters["model_path"] = str(Path(given("model_path")).expanduser())
    parameters["use_sim_time"] = yaml.safe_load(given("use_sim_time"))
    topics = ("image", "odom", "scan", "cmd_vel", "instruction")
    return [
        Node(
            package="nvila_ros",
            executable="navigator_node",
            name="navigator",
            namespace=given("namespace"),
            parameters=[given("params_file"), parameters],
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

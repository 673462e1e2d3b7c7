# SPDX-License-Identifier: Apache-2.0
"""Starts the navigator: ros2 launch nvila_ros navigate.launch.py image_topic:=/camera/image_raw."""

from pathlib import Path
from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from nvila_ros.ros_environment import share_folder
from nvila_ros.ros_launch import Given, declared, given_bool, own_node, reader

# name, default, description
ARGUMENTS = (
    ("namespace", "", "Namespace of the node; all its names are relative"),
    ("use_sim_time", "false", "Take the time from /clock"),
    (
        "params_file",
        str(share_folder() / "config" / "navigator.yaml"),
        "Every parameter; the arguments below win over it where they are given",
    ),
    ("autostart", "true", "Configure and activate at once; false waits for a lifecycle manager"),
    ("use_respawn", "false", "Start the node again when it dies"),
    ("log_level", "info", "debug, info, warn or error"),
    ("image_topic", "image", "Camera image; with image_transport:=compressed, <topic>/compressed"),
    ("odom_topic", "odom", "nav_msgs/Odometry"),
    ("scan_topic", "scan", "sensor_msgs/LaserScan for the obstacle stop; may be silent"),
    ("cmd_vel_topic", "cmd_vel", "Where velocities go; cmd_vel_nav beside Nav2"),
    ("instruction_topic", "instruction", "std_msgs/String: where to go"),
    ("emergency_stop_topic", "emergency_stop", "std_msgs/Bool: true stops until it is cleared"),
    ("dashboard", "false", "Serve a page to see and steer by; its address is printed"),
    ("dashboard_port", "8642", "Port of that page on 127.0.0.1; 0 takes a free one"),
)
# These become parameters; empty leaves the file's value.
PARAMETERS = (
    ("model_path", "", "Checkpoint folder; empty is the file's, by default the shipped model"),
    ("device", "", "Torch device of the model: cpu, cuda, auto"),
    ("backend", "", "kernels is the fast path of a CUDA GPU, torch the plain one, auto picks"),
    ("vision_backend", "", "The tower: auto, or an exported one: onnxruntime, tensorrt"),
    ("executor", "", "primitives (our own on cmd_vel) or nav2 (its behaviour server)"),
    ("execute", "", "false decides and reports but never moves the robot"),
    ("image_transport", "", "raw or compressed"),
    ("enable_stamped_cmd_vel", "", "false for Twist instead of TwistStamped"),
)
BOOLEANS = ("execute", "enable_stamped_cmd_vel")


def start(context: LaunchContext) -> list[Node]:
    """The node, once the arguments are known."""
    given = reader(context)
    parameters: dict[str, Any] = {
        name: given_bool(given, name) if name in BOOLEANS else given(name)
        for name, _, _ in PARAMETERS
        if given(name)
    }
    if "model_path" in parameters:
        parameters["model_path"] = str(Path(given("model_path")).expanduser())
    for name in ("use_sim_time", "autostart"):
        parameters[name] = given_bool(given, name)
    topics = ("image", "odom", "scan", "cmd_vel", "instruction", "emergency_stop")
    watchers = [dashboard(given)] if given_bool(given, "dashboard") else []
    return [
        *watchers,
        own_node(
            "navigator",
            given,
            [given("params_file"), parameters],
            topics,
            respawn=given_bool(given, "use_respawn"),
            respawn_delay=2.0,
        ),
    ]


def dashboard(given: Given) -> Node:
    """The page's own process: when it ends, the navigator drives on."""
    port = int(given("dashboard_port"))
    parameters = {"port": port, "image_transport": given("image_transport") or "raw"}
    topics = ("image", "odom", "instruction", "emergency_stop")
    return own_node("dashboard", given, [parameters], topics, arguments=[])


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    return LaunchDescription([*declared((*ARGUMENTS, *PARAMETERS)), OpaqueFunction(function=start)])

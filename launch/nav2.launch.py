# SPDX-License-Identifier: Apache-2.0
"""The navigator behind Nav2's last two guards: ros2 launch nvila_ros nav2.launch.py.

navigator -> cmd_vel_nav -> velocity_smoother -> cmd_vel_smoothed -> collision_monitor -> cmd_vel

Nav2's lifecycle manager brings all three up and down. Jazzy and Kilted (nav2 1.3 and 1.4); Nav2 is
in no wheel: this file is loaded in tests, the parameters are checked, nothing was run with Nav2.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

from nvila_ros.ros_environment import added_environment, share_folder
from nvila_ros.ros_launch import declared, given_bool, given_stamped, navigator, reader

SHARE = share_folder()
# name, default, description; the navigator's own arguments are shown and taken too
ARGUMENTS = (
    ("nav2_params_file", str(SHARE / "config" / "nav2.yaml"), "Of smoother, monitor and manager"),
    ("final_cmd_vel_topic", "cmd_vel", "What the robot's base listens to"),
)
# package, executable and name, remappings
NODES = (
    ("nav2_velocity_smoother", "velocity_smoother", {"cmd_vel": "cmd_vel_nav"}),
    ("nav2_collision_monitor", "collision_monitor", {}),
    ("nav2_lifecycle_manager", "lifecycle_manager", {}),
)


def start_nav2(context: LaunchContext) -> list[Node]:
    """Smoother, monitor and manager."""
    given = reader(context)
    common = {"use_sim_time": given_bool(given, "use_sim_time"), **given_stamped(given)}
    final = {"cmd_vel_out_topic": given("final_cmd_vel_topic")}
    return [
        Node(
            package=package,
            executable=name,
            name=name,
            namespace=given("namespace"),
            parameters=[
                given("nav2_params_file"),
                common,
                *([final] if name == "collision_monitor" else []),
            ],
            remappings=list(remappings.items()),
            arguments=["--ros-args", "--log-level", given("log_level")],
            additional_env=added_environment(os.environ),
            output="screen",
        )
        for package, name, remappings in NODES
    ]


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    return LaunchDescription(
        [
            *declared(ARGUMENTS),
            navigator(autostart="false", cmd_vel_topic="cmd_vel_nav"),
            OpaqueFunction(function=start_nav2),
        ]
    )

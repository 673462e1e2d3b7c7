# SPDX-License-Identifier: Apache-2.0
"""Gazebo and the navigator: ros2 launch nvila_ros gazebo.launch.py.

For ROS 2 Jazzy with Gazebo Harmonic (ros_gz 1.0.x). Gazebo cannot be installed on the machines that
build this package: world, robot and bridge are parsed in tests, and this file is loaded; nothing of
it was run in Gazebo.
"""

import math
import os

from launch import LaunchContext, LaunchDescription
from launch.actions import IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from nvila_ros.ros_environment import added_environment, share_folder
from nvila_ros.ros_launch import declared, given_bool, navigator, reader

SHARE = share_folder()
GAZEBO = SHARE / "config" / "gazebo"
# name, default, description; the navigator's own arguments are shown and taken too
ARGUMENTS = (
    ("world", str(GAZEBO / "apartment.sdf"), "World file; the default is apartment 900000"),
    ("robot", str(GAZEBO / "robot.sdf"), "Robot file"),
    ("bridge_config", str(GAZEBO / "bridge.yaml"), "What crosses between Gazebo and ROS"),
    ("headless", "false", "No window: server only"),
    ("x_m", "10.775", "Start of the robot: the episode's own"),
    ("y_m", "5.675", "Start of the robot"),
    ("yaw_rad", "2.581", "Heading at the start"),
)


def start_gazebo(context: LaunchContext) -> list:
    """Gazebo, the robot in it and the bridge."""
    given = reader(context)
    headless = given_bool(given, "headless")
    launch = PathJoinSubstitution([FindPackageShare("ros_gz_sim"), "launch", "gz_sim.launch.py"])
    flags = "-r -s" if headless else "-r"
    yaw_rad = math.remainder(float(given("yaw_rad")), math.tau)
    place = ["-x", given("x_m"), "-y", given("y_m"), "-z", "0.01", "-Y", str(yaw_rad)]
    topics = ("image", "odom", "scan", "cmd_vel")
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(launch),
            launch_arguments={
                "gz_args": f"{flags} {given('world')}",
                "on_exit_shutdown": "true",
            }.items(),
        ),
        Node(
            package="ros_gz_sim",
            executable="create",
            arguments=["-name", "nvila_robot", "-file", given("robot"), *place],
            output="screen",
        ),
        Node(
            package="ros_gz_bridge",
            executable="parameter_bridge",
            name="gazebo_bridge",
            namespace=given("namespace"),
            parameters=[{"config_file": given("bridge_config")}],
            remappings=[(topic, given(f"{topic}_topic")) for topic in topics],
            additional_env=added_environment(os.environ),
            output="screen",
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    return LaunchDescription(
        [
            *declared(ARGUMENTS),
            navigator(use_sim_time="true"),
            OpaqueFunction(function=start_gazebo),
        ]
    )

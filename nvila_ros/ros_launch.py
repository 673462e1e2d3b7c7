# SPDX-License-Identifier: Apache-2.0
"""What the launch files share: arguments from tables, our nodes, the navigator beside a world."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_context import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from nvila_ros.errors import ConfigError
from nvila_ros.ros_environment import added_environment, share_folder

Given = Callable[[str], str]
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True} | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


def declared(rows: Iterable[tuple[str, str, str]]) -> list[DeclareLaunchArgument]:
    """Launch arguments from rows of name, default and description."""
    return [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, default, text in rows
    ]


def reader(context: LaunchContext) -> Given:
    """Name of an argument -> its text, once the arguments are known."""
    return lambda name: LaunchConfiguration(name).perform(context)


def given_bool(given: Given, name: str) -> bool:
    """An argument that is true or false, in any spelling of YAML's; ConfigError for another."""
    text = given(name)
    if text.strip().lower() not in BOOLEANS:
        raise ConfigError(f"{name}:={text} is neither true nor false; give {name}:=true or :=false")
    return BOOLEANS[text.strip().lower()]


def given_stamped(given: Given) -> dict[str, bool]:
    """The parameter enable_stamped_cmd_vel where it was given; both ends of cmd_vel need it."""
    name = "enable_stamped_cmd_vel"
    return {name: given_bool(given, name)} if given(name) else {}


def own_node(
    name: str, given: Given, parameters: Sequence[Any], topics: Iterable[str], **more: Any
) -> Node:
    """One of our nodes, `<name>_node`, with the arguments `<topic>_topic` as its remappings."""
    settings = {
        "arguments": ["--ros-args", "--log-level", given("log_level")],
        "output": "screen",
        "emulate_tty": True,
        **more,
    }
    return Node(
        package="nvila_ros",
        executable=f"{name}_node",
        name=name,
        namespace=given("namespace"),
        parameters=list(parameters),
        remappings=[(topic, given(f"{topic}_topic")) for topic in topics],
        additional_env=added_environment(os.environ),
        **settings,
    )


def navigator(**arguments: str) -> IncludeLaunchDescription:
    """navigate.launch.py with some of its arguments given; the others are shown and taken too."""
    path = share_folder() / "launch" / "navigate.launch.py"
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(path)), launch_arguments=arguments.items()
    )

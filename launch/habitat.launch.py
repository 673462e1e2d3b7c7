# SPDX-License-Identifier: Apache-2.0
"""Habitat and the navigator: ros2 launch nvila_ros habitat.launch.py data:=<episodes>.

Habitat itself runs in its own Python environment, started before this:
python nvila_ros/evaluation/habitat_server.py --scenes data/scene_datasets
"""

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
    ("data", "", "Folder that holds <split>/<split>.json.gz of VLN-CE"),
    ("dataset", "r2r", "Form of the files: r2r or rxr"),
    ("split", "val_unseen", "Which episodes"),
    ("episode_index", "0", "Which one of them"),
    ("endpoint", "tcp://127.0.0.1:5555", "Where habitat_server.py listens"),
)


def start_habitat(context: LaunchContext) -> list[Node]:
    """The bridge node, once the arguments are known."""
    given = reader(context)
    parameters: dict[str, Any] = {name: given(name) for name in ("dataset", "split", "endpoint")}
    parameters["data"] = str(Path(given("data")).expanduser())
    parameters["episode_index"] = int(given("episode_index"))
    parameters |= given_stamped(given)
    topics = ("image", "odom", "cmd_vel")
    return [own_node("habitat", given, [parameters], topics)]


def generate_launch_description() -> LaunchDescription:
    """Read by `ros2 launch`."""
    return LaunchDescription(
        [
            *declared(ARGUMENTS),
            navigator(use_sim_time="true"),
            OpaqueFunction(function=start_habitat),
        ]
    )

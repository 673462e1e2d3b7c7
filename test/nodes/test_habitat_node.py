# SPDX-License-Identifier: Apache-2.0
"""Habitat on ROS topics: the real node, server and client; only Habitat itself is a stand-in."""

import gzip
import json
import math
import threading

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")
pytest.importorskip("zmq", reason="pip install pyzmq")

from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo
from stand_ins import wait_for

from nvila_ros.actions import ACTIONS, STOP
from nvila_ros.errors import ConfigError
from nvila_ros.evaluation import habitat_server
from nvila_ros.evaluation.vlnce_episodes import habitat_from_yaw
from nvila_ros.nodes.habitat_node import HabitatNode
from nvila_ros.ros_main import SENSOR_QOS

pytestmark = pytest.mark.ros
ENDPOINT = "inproc://habitat-node"


class PlaneWorld:
    """An empty plane in Habitat's axes; its camera is noise, as no two pictures are the same."""

    collided = False

    def __init__(self):
        self._noise = np.random.default_rng(0)

    def reset(self, request):
        self.position = np.array(request["start_position"], float)
        _, y, _, w = request["start_rotation"]
        self.heading = 2 * math.atan2(y, w)

    def move(self, forward_m, turn_rad):
        self.heading += turn_rad
        ahead = np.array([-math.sin(self.heading), 0.0, -math.cos(self.heading)])
        self.position = self.position + forward_m * ahead

    def view(self):
        rgb = self._noise.integers(0, 255, (24, 32, 3), np.uint8)
        return self.position.tolist(), habitat_from_yaw(self.heading), 3.0, rgb


@pytest.fixture
def served():
    ended = threading.Event()
    thread = threading.Thread(
        target=habitat_server.serve, args=(PlaneWorld(), ENDPOINT, ended.is_set), daemon=True
    )
    thread.start()
    yield
    ended.set()
    thread.join(5.0)


@pytest.fixture
def data(tmp_path):
    row = {
        "episode_id": 4,
        "scene_id": "mp3d/a/a.glb",
        "start_position": [0.0, 0.0, 0.0],
        "start_rotation": [0.0, 0.0, 0.0, 1.0],
        "info": {"geodesic_distance": 3.0},
        "goals": [{"position": [0.0, 0.0, -3.0]}],
        "reference_path": [[0.0, 0.0, 0.0], [0.0, 0.0, -3.0]],
        "instruction": {"instruction_text": "Go ahead."},
    }
    (tmp_path / "val_unseen").mkdir()
    with gzip.open(tmp_path / "val_unseen" / "val_unseen.json.gz", "wt") as file:
        json.dump({"episodes": [row]}, file)
    return tmp_path


def make(ros, **parameters):
    return HabitatNode(
        context=ros.context,
        namespace=ros.namespace,
        parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()],
    )


def test_the_navigator_drives_in_habitat(ros, robot_free, policy, served, data):
    """75 cm ahead and 45 degrees to the left, in the axes of REP-103."""
    answers = iter([ACTIONS[3], ACTIONS[6], STOP])
    policy.next_answer = lambda: next(answers)
    habitat = ros.add(make(ros, endpoint=ENDPOINT, data=str(data)))
    infos = []
    robot_free.node.create_subscription(CameraInfo, "camera_info", infos.append, SENSOR_QOS)
    ros.navigator(policy)
    robot_free.wait_for_state("idle")
    robot_free.instruct("Go ahead.")
    robot_free.wait_for_state("idle", "SUCCEEDED")
    view = habitat.robot._view
    assert view.position_m[0] == pytest.approx(0.75, abs=0.05)
    assert abs(view.position_m[1]) < 0.05
    assert view.yaw_rad == pytest.approx(math.radians(45), abs=0.1)
    wait_for(lambda: infos, "camera_info")
    assert infos[-1].k[0] == pytest.approx(16.0)  # 90 degrees over 32 px


def test_without_data_it_says_what_to_give(ros):
    with pytest.raises(ConfigError, match="data"):
        make(ros)

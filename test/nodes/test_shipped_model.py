# SPDX-License-Identifier: Apache-2.0
"""The shipped model knows the simulator only: before it moves anything else the node says so."""

import os
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from rcl_interfaces.msg import Log
from rclpy.qos import DurabilityPolicy, QoSProfile
from stand_ins import wait_for

from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.nodes.policy_loading import load_arguments, shipped_folder, shipped_model_warning

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_model_on_a_robot_is_warned_of_with_what_to_give():
    text = shipped_model_warning(NavigatorConfig(), use_sim_time=False)
    assert all(word in text for word in ("nano", "model_path", "execute:=false", "use_sim_time"))
    assert load_arguments(NavigatorConfig())["folder"] == str(shipped_folder())


def test_it_is_known_by_its_folder_however_that_is_written():
    for path in (ROOT / "models/nano", os.path.relpath(ROOT / "nvila_ros/models/nano")):
        assert shipped_model_warning(NavigatorConfig(model_path=str(path)), use_sim_time=False)


@pytest.mark.parametrize(
    ("settings", "use_sim_time"),
    [({}, True), ({"execute": False}, False), ({"model_path": "elsewhere"}, False)],
)
def test_simulators_watching_and_other_models_are_not_warned_of(settings, use_sim_time):
    assert shipped_model_warning(NavigatorConfig(**settings), use_sim_time) == ""


@pytest.fixture
def warnings(ros):
    """What this test's navigator warned of."""
    heard = []
    qos = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)

    def keep(message):
        if ros.namespace in message.name and "must not drive a robot" in message.msg:
            heard.append(message.msg)

    ros.node("reader").create_subscription(Log, "/rosout", keep, qos)
    return heard


def test_the_node_warns_once_when_it_may_move(ros, robot, warnings):
    ros.navigator(execute=False)
    robot.wait_for_state("idle")
    assert not warnings
    assert robot.set_parameters(execute=True) == [""]
    wait_for(lambda: warnings, "the warning")
    assert robot.change_state("deactivate") and robot.change_state("activate")
    assert robot.set_parameters(execute=False) == robot.set_parameters(execute=True) == [""]
    robot.wait_for_state("idle")
    assert len(warnings) == 1


def test_under_simulated_time_it_does_not(ros, robot, warnings):
    ros.navigator(use_sim_time=True)
    robot.wait_for_state("idle")
    assert not warnings

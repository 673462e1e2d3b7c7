# SPDX-License-Identifier: Apache-2.0
"""The dashboard's ROS side beside a real navigator node: hears everything, disturbs nothing."""

import json
import signal
import time

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Path
from rclpy.parameter import Parameter
from std_msgs.msg import String

from nvila_ros.nodes.dashboard_node import DashboardNode, main
from nvila_ros.ros_main import EVENT_QOS, STATE_QOS

pytestmark = pytest.mark.ros


@pytest.fixture
def add_dashboard(ros):
    return lambda: ros.add(DashboardNode(context=ros.context, namespace=ros.namespace))


@pytest.fixture
def dashboard(add_dashboard):
    return add_dashboard()


@pytest.fixture
def state(dashboard):
    return dashboard.state


def test_it_hears_the_navigator_from_instruction_to_result(
    ros, robot, policy, dashboard, state, waiting
):
    state.watch("a page", True)
    ros.navigator(policy, motion__max_forward_m_s=0.3)
    waiting(lambda: state.status.get("state") == "idle", "the navigator's state")
    waiting(lambda: state.health, "diagnostics")
    waiting(lambda: state.picture("camera").number, "a camera picture")
    waiting(lambda: dashboard._instruction.get_subscription_count() > 1, "the navigator's ear")
    dashboard.instruct("Go through the door.")
    waiting(lambda: state.decisions() and state.plan and state.speed[0] == 0.0, "a decision")
    assert state.decisions()[0]["sentence"].startswith("The next action is")
    waiting(lambda: state.picture("strip").number, "what the model saw")
    waiting(lambda: len(state.trail()) > 3, "a trail")
    assert state.picture("camera").jpeg[:2] == state.picture("strip").jpeg[:2] == b"\xff\xd8"
    waiting(lambda: state.instructions()[0].episode == 1, "the instruction's episode")
    answer = dashboard.call("navigator/cancel").result(timeout=10.0)
    assert (answer.success, answer.message) == (True, "canceled")
    waiting(lambda: state.instructions()[0].result == "CANCELED", "the instruction's result")


def test_the_emergency_stop_stops_and_is_cleared(driving, add_dashboard, waiting):
    with driving() as robot:
        dashboard = add_dashboard()
        state = dashboard.state
        waiting(lambda: state.status.get("state") == "moving", "the state")
        waiting(lambda: dashboard._emergency.get_subscription_count() > 1, "the navigator's ears")
        dashboard.emergency_stop()
        waiting(lambda: robot.command == (0.0, 0.0), "zero velocity", 5.0)
        robot.expect_standing()
        waiting(lambda: state.status.get("state") == "emergency_stop", "the state")
        assert dashboard.call("navigator/clear_emergency_stop").result(timeout=10.0).success
        waiting(lambda: state.status.get("state") == "idle", "the state after clearing")


def test_a_cleared_stop_does_not_come_back_with_a_new_navigator(
    ros, driving, policy, add_dashboard, waiting
):
    with driving() as robot:
        dashboard = add_dashboard()
        ears = dashboard._emergency.get_subscription_count
        waiting(lambda: ears() > 1, "the navigator's ears")
        dashboard.emergency_stop()
        robot.wait_for_state("emergency_stop")
        assert dashboard.call("navigator/clear_emergency_stop").result(timeout=10.0).success
        robot.wait_for_state("idle")
        ros.remove(next(node for node in ros.nodes if node.get_name() == "navigator"))
        waiting(lambda: ears() == 0, "silence of the old navigator")
        robot.state = {}
        ros.navigator(policy)
        robot.wait_for_state("idle")
        waiting(lambda: ears() > 1, "the new navigator's ears")
        waiting(lambda: dashboard._instruction.get_subscription_count() > 1, "its other ear")
        dashboard.instruct("Go on.")
        robot.wait_until_moving()


def test_it_is_no_listener_of_velocities(ros, robot, dashboard):
    names = dashboard.get_subscriber_names_and_types_by_node("dashboard", f"/{ros.namespace}")
    assert f"/{ros.namespace}/cmd_vel" not in dict(names)


def test_pictures_are_asked_for_only_while_somebody_looks(ros, robot, dashboard, state, waiting):
    topic = f"/{ros.namespace}/image"
    count = lambda: robot.node.count_subscribers(topic)  # noqa: E731
    waiting(lambda: state.pose is not None, "odometry")
    assert count() == 0 and state.picture("camera").number == 0
    state.watch("a page", True)
    waiting(lambda: state.picture("camera").number > 2, "pictures")
    state.watch("a page", False)
    waiting(lambda: count() == 0, "no subscription")


def test_a_service_that_is_not_there_is_said(dashboard):
    answer = dashboard.call("navigator/pause").result(timeout=1.0)
    assert not answer.success and "is not there" in answer.message
    assert not dashboard.move_to_seed(3).result(timeout=1.0).success


def test_nonsense_on_the_topics_changes_nothing(ros, dashboard, state, waiting):
    node = ros.node("liar")
    words = node.create_publisher(String, "navigator/state", STATE_QOS)
    health = node.create_publisher(DiagnosticArray, "/diagnostics", EVENT_QOS)
    plan = node.create_publisher(Path, "navigator/plan", STATE_QOS)
    waiting(words.get_subscription_count, "the dashboard")
    for text in ("", "[1, 2]", '"idle"', "{", "nul\x00"):
        words.publish(String(data=text))
    foreign = DiagnosticStatus(name="some/other_node: state", level=b"\x02")
    health.publish(DiagnosticArray(status=[foreign]))
    plan.publish(Path())
    words.publish(String(data=json.dumps({"state": "idle", "episode": None})))
    waiting(lambda: state.status.get("state") == "idle", "the good one")
    assert not state.health and state.plan == ()


def test_other_names_of_the_nodes_reach_the_same_buttons(ros, robot, policy, waiting):
    ros.navigator(policy)
    names = [Parameter("navigator", value=f"/{ros.namespace}/navigator")]
    node = DashboardNode(context=ros.context, namespace="/elsewhere", parameter_overrides=names)
    ros.add(node)
    waiting(lambda: node.state.status.get("state") == "idle", "the state")
    waiting(lambda: node.state.health, "diagnostics")
    assert node.call("navigator/pause").result(timeout=10.0).message == "nothing to pause"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["-p", "host:=0.0.0.0"], "--allow-remote"),
        (["-p", "host:=0.0.0.0", "-p", "allow_remote:=true"], "choose a token"),
        (["-p", "prot:=8080"], "did you mean 'port'"),
        (["-p", "host:=203.0.113.1", "-p", "allow_remote:=true"], "choose a token"),
    ],
)
def test_what_it_refuses_is_said(monkeypatch, capsys, arguments, words):
    monkeypatch.delenv("NVILA_DASHBOARD_TOKEN", raising=False)
    assert main(["--ros-args", *arguments]) == 3
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_quietly_even_when_they_come_twice(ros, start_node, name):
    pytest.importorskip("nicegui", reason="no NiceGUI here: needs the extra 'dashboard'")
    process = start_node(ros, "dashboard", "-p", "port:=0")
    line = process.stdout.readline()
    assert line.startswith("dashboard: http://127.0.0.1:"), line + process.stdout.read()
    process.send_signal(name)
    time.sleep(0.05)
    process.send_signal(name)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and output == ""

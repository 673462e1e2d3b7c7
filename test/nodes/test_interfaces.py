# SPDX-License-Identifier: Apache-2.0
"""What the navigator node takes and says beside commands: plan, history, diagnostics."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Path
from rcl_interfaces.srv import DescribeParameters
from sensor_msgs.msg import CompressedImage
from stand_ins import wait_for

from nvila_ros.actions import ACTIONS, STOP
from nvila_ros.navigator_status import Result
from nvila_ros.nodes.navigator_inputs import collision_monitor_state
from nvila_ros.ros_main import EVENT_QOS, STATE_QOS

pytestmark = pytest.mark.ros


class Listener:
    """Everything on some topics, newest last."""

    def __init__(self, node, **kinds):
        self.heard = {}
        for topic, (kind, qos) in kinds.items():
            rows = self.heard.setdefault(topic, [])
            name = {"diagnostics": "/diagnostics", "history": "navigator/history/compressed"}
            topic_name = name.get(topic, f"navigator/{topic}")
            node.create_subscription(kind, topic_name, rows.append, qos)

    def __getitem__(self, topic):
        return self.heard[topic]


def test_the_plan_leads_from_here_to_the_end_of_the_motion(ros, robot, policy):
    listener = Listener(robot.node, plan=(Path, STATE_QOS))
    answers = iter([ACTIONS[2], STOP])
    policy.next_answer = lambda: next(answers)
    ros.navigator(policy)
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    robot.wait_for_state("idle", "SUCCEEDED")
    wait_for(lambda: len(listener["plan"]) >= 2, "a plan and its end")
    plan, end = listener["plan"][0], listener["plan"][-1]
    assert plan.header.frame_id == "odom" and not end.poses
    first, last = plan.poses[0].pose.position, plan.poses[-1].pose.position
    assert first.x == pytest.approx(0.0, abs=0.02) and last.x == pytest.approx(0.5, abs=0.02)


def test_the_history_is_shown_to_those_who_look(ros, robot, policy):
    listener = Listener(robot.node, history=(CompressedImage, EVENT_QOS))
    ros.navigator(policy)
    robot.wait_for_state("idle")
    wait_for(lambda: robot.node.count_publishers("navigator/history/compressed"), "the publisher")
    robot.instruct("Go through the door.")
    wait_for(lambda: listener["history"], "a strip")
    message = listener["history"][0]
    assert message.format == "jpeg"
    picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == 8 * 16


def diagnostics_of(listener, task):
    for array in reversed(listener["diagnostics"]):
        for status in array.status:
            if status.name.endswith(f"navigator: {task}"):
                return status, {row.key: row.value for row in status.values}
    return None, {}


def test_diagnostics_say_how_it_goes(ros, robot, policy):
    listener = Listener(robot.node, diagnostics=(DiagnosticArray, EVENT_QOS))
    ros.navigator(policy, motion__max_forward_m_s=0.3)
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    wait_for(lambda: len(robot.decisions) >= 3, "three decisions")
    count = len(listener["diagnostics"])
    wait_for(lambda: len(listener["diagnostics"]) >= count + 2, "diagnostics")
    camera, rows = diagnostics_of(listener, "camera")
    assert camera.level == DiagnosticStatus.OK and float(rows["rate (Hz)"]) > 4.0
    assert float(rows["age (s)"]) < 1.0
    _, rows = diagnostics_of(listener, "model")
    assert float(rows["decision latency p50 (s)"]) == pytest.approx(0.001)
    assert float(rows["decision latency p95 (s)"]) <= float(rows["decision latency max (s)"])
    assert float(rows["confidence of the last decision"]) == pytest.approx(0.9)
    state, rows = diagnostics_of(listener, "state")
    assert rows["lifecycle"] == "active" and 0.0 <= float(rows["waiting share of the episode"]) <= 1
    assert state.hardware_id == ros.namespace
    odometry, _ = diagnostics_of(listener, "odometry")
    assert odometry.level == DiagnosticStatus.OK


def test_diagnostics_say_when_most_images_are_lost(ros, robot, policy):
    listener = Listener(robot.node, diagnostics=(DiagnosticArray, EVENT_QOS))
    ros.navigator(policy, camera_rate_hz=100.0)
    robot.wait_for_state("idle")

    def warned():
        camera, _ = diagnostics_of(listener, "camera")
        return camera is not None and "fastdds.xml" in camera.message

    wait_for(warned, "a warning")


def test_an_instruction_preempts_or_is_refused(ros, robot, policy):
    node = ros.navigator(policy, preempt=False, motion__max_forward_m_s=0.1)
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    robot.wait_until_moving()
    wait_for(lambda: robot.state["episode"] == 1, "an episode")  # topics keep no order
    robot.instruct("Go elsewhere.")
    wait_for(lambda: node.inputs.num_refusals, "a refusal")
    assert robot.state["episode"] == 1
    assert robot.set_parameters(preempt=True) == [""]
    robot.instruct("Go elsewhere.")
    wait_for(lambda: robot.state["episode"] == 2, "a second episode")


def test_speeds_change_while_it_drives(driving, ros):
    with driving(motion__max_forward_m_s=0.05) as robot:
        assert robot.command[0] <= 0.05
        assert robot.set_parameters(motion__max_forward_m_s=0.2) == [""]
        wait_for(lambda: robot.command[0] > 0.15, "a faster robot")
        assert robot.set_parameters(safety__forward_limit_m_s=0.08) == [""]
        wait_for(lambda: 0.0 < robot.command[0] <= 0.0801, "a limited robot")


def test_parameters_show_text_range_and_whether_they_may_change(ros, robot, policy):
    ros.navigator(policy)
    names = ["motion.max_forward_m_s", "autostart", "model_path"]
    request = DescribeParameters.Request(names=names)
    speed, autostart, model = robot.call(
        "describe_parameters", DescribeParameters, request
    ).descriptors
    assert (speed.floating_point_range[0].from_value, speed.read_only) == (0.02, False)
    assert "m/s" in speed.description and autostart.read_only and not model.read_only


def test_dry_run_decides_and_never_moves(ros, robot, policy):
    ros.navigator(policy, execute=False)
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    wait_for(lambda: len(robot.decisions) >= 2, "decisions")
    robot.expect_standing()
    wait_for(lambda: "would do" in robot.state["message"], "what it would do")


def test_a_collision_monitor_that_stops_is_an_obstacle(driving, ros):
    """nav2_msgs is in no wheel: the callback gets what the message holds."""
    assert collision_monitor_state() is None
    with driving(max_failed_primitives=1) as robot:
        node = next(node for node in ros.nodes if node.get_name() == "navigator")
        message = SimpleNamespace(action_type=1, polygon_name="PolygonStop")
        node.inputs._on_collision_monitor(message)
        robot.wait_for_state("idle", "OBSTACLE")
        robot.expect_standing()


def test_qos_can_be_overridden(ros, robot, policy):
    topic = f"/{ros.namespace}/image"
    node = ros.navigator(policy, **{f"qos_overrides.{topic}.subscription.reliability": "reliable"})
    robot.wait_for_state("idle")
    (subscription,) = node.get_subscriptions_info_by_topic(topic)
    assert subscription.qos_profile.reliability.name == "RELIABLE"
    (other,) = node.get_subscriptions_info_by_topic(f"/{ros.namespace}/odom")
    assert other.qos_profile.reliability.name == "BEST_EFFORT", "only what was asked for"


def test_result_codes_are_numbers_that_never_change():
    assert {result.name: int(result) for result in Result} == {
        "NONE": 0,
        "SUCCEEDED": 1,
        "CANCELED": 2,
        "TIMEOUT": 3,
        "STALE_SENSOR": 4,
        "OBSTACLE": 5,
        "MODEL_ERROR": 6,
        "REFUSED": 7,
        "EMERGENCY_STOP": 8,
        "LOST": 9,
        "LOW_CONFIDENCE": 10,
        "PREEMPTED": 11,
    }

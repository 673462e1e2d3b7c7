# SPDX-License-Identifier: Apache-2.0
"""The navigator node over DDS: it drives, and after whatever goes wrong it stands and lives."""

import math
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from stand_ins import wait_for

from nvila_ros import ros_images
from nvila_ros.actions import ACTIONS, STOP
from nvila_ros.ros_main import SENSOR_QOS

pytestmark = pytest.mark.ros


def goes_on(robot):
    """The node is alive: the next instruction makes the robot move again."""
    robot.instruct("Go through the door.")
    robot.wait_until_moving()


def test_it_drives_what_was_decided_and_reports_it(ros, robot, policy):
    answers = iter([ACTIONS[2], ACTIONS[6], STOP])
    policy.next_answer = lambda: next(answers)
    ros.navigator(policy)
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    robot.wait_for_state("idle", "SUCCEEDED")
    assert robot.pose[0] == pytest.approx(0.50, abs=0.05)
    assert robot.pose[2] == pytest.approx(math.radians(45), abs=0.10)
    wait_for(lambda: len(robot.decisions) == 3, "three decisions")  # topics keep no order
    assert [row["sentence"] for row in robot.decisions][-1] == STOP.sentence
    assert robot.decisions[-1]["confidence"] == 0.9
    wait_for(lambda: len(robot.primitives) == 2, "two motions")
    assert [row["state"] for row in robot.primitives] == ["done", "done"]
    robot.expect_standing()


def test_services_cancel_pause_resume(driving):
    with driving() as robot:
        assert robot.call("pause").success
        robot.expect_standing()
        assert robot.call("resume").success
        robot.wait_until_moving()
        assert robot.call("cancel").success
        robot.expect_standing()
        assert not robot.call("cancel").success
        robot.wait_for_state("idle", "CANCELED")
        goes_on(robot)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty"),
        ("go " * 1000, "2000"),
        ("go <image> there", "<image>"),
        ("<|im_start|>system", "<|im_start|>"),
    ],
)
def test_bad_instructions_are_refused_and_good_ones_follow(ros, robot, policy, text, reason):
    node = ros.navigator(policy)
    robot.wait_for_state("idle")
    robot.instruct(text)
    wait_for(lambda: node.inputs.num_refusals, "a refusal")
    robot.expect_standing()
    assert node.inputs.num_refusals == 1
    assert "instruction refused" in node.inputs.last_refusal
    assert "InstructionError" not in node.inputs.last_refusal
    assert robot.state["state"] == "idle"
    goes_on(robot)


def test_images_of_an_unknown_encoding_stop_the_robot(driving, waiting):
    with driving() as robot:
        robot.image = Image(encoding="holographic", width=4, height=4, step=4)
        robot.wait_for_state("waiting", "no image")
        robot.expect_standing()
        robot.image = None
        robot.wait_until_moving()


def test_images_without_pixels_stop_the_robot(driving):
    with driving() as robot:
        robot.image = Image(encoding="rgb8", width=0, height=0)
        robot.wait_for_state("waiting", "no image")
        robot.expect_standing()


def test_a_silent_camera_stops_the_robot_within_its_bound(driving, waiting):
    with driving() as robot:
        robot.images = False
        silent_s = time.monotonic()
        robot.wait_for_state("waiting", "no image")
        robot.expect_standing()
        assert robot.last_moving_s - silent_s < 1.5
        robot.images = True
        robot.wait_until_moving()


def test_silence_that_lasts_ends_the_episode(driving):
    with driving(patience_s=1.0) as robot:
        robot.images = False
        robot.wait_for_state("idle", "STALE_SENSOR")
        robot.expect_standing()
        robot.images = True
        goes_on(robot)


def test_odometry_that_is_no_number_stops_the_robot(driving):
    with driving() as robot:
        robot.pose[0] = math.nan
        bad_s = time.monotonic()
        robot.wait_for_state("waiting", "no odometry")
        robot.expect_standing()
        assert robot.last_moving_s - bad_s < 1.0
        robot.pose[0] = 0.0
        robot.wait_until_moving()


def test_silent_odometry_stops_the_robot(driving):
    with driving() as robot:
        robot.odometry = False
        robot.wait_for_state("waiting", "no odometry")
        robot.expect_standing()


def test_a_model_that_raises(driving, policy):
    def fail():
        raise MemoryError("out of memory")

    with driving(motion__max_forward_m_s=0.5) as robot:
        policy.next_answer = fail
        robot.wait_for_state("idle", "MODEL_ERROR")
        robot.expect_standing()
        policy.next_answer = None
        goes_on(robot)


def test_a_model_that_hangs(driving, policy):
    release = threading.Event()

    def hang():
        release.wait(60.0)
        return STOP

    with driving(motion__max_forward_m_s=0.5, decision_timeout_s=0.5) as robot:
        policy.next_answer = hang
        robot.wait_for_state("idle", "not answered")
        robot.expect_standing()
        policy.next_answer = None
        release.set()
        goes_on(robot)


def test_a_missing_checkpoint_is_a_fault_that_names_the_folder(ros, robot, tmp_path):
    ros.navigator(model_path=str(tmp_path / "nowhere"))
    robot.wait_for_state("fault", "nowhere")
    robot.instruct("Go through the door.")
    robot.expect_standing()


def test_a_corrupt_checkpoint_is_a_fault(ros, robot, tiny_folder, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    next(broken.rglob("*.safetensors")).write_bytes(b"not weights")
    ros.navigator(model_path=str(broken))
    robot.wait_for_state("fault", "CheckpointError")
    robot.expect_standing()


@pytest.mark.parametrize(
    "parameters, reason",
    [
        ({"max_decision": 3}, "did you mean 'max_decisions'?"),
        ({"motion__max_forward_ms": 0.1}, "did you mean 'max_forward_m_s'?"),
        ({"control_rate_hz": 1000.0}, "at most 200"),
        ({"max_decisions": "many"}, "max_decisions"),
        ({"motion__acceleration_m_s2": math.nan}, "finite"),
    ],
)
def test_a_bad_parameter_is_a_fault_that_says_what_to_write(ros, robot, policy, parameters, reason):
    ros.navigator(policy, **parameters)
    robot.wait_for_state("fault", reason)
    assert not robot.change_state("configure")
    assert robot.state["state"] == "fault" and not robot.is_moving()


def test_whole_numbers_are_taken_for_real_ones(ros, policy):
    node = ros.navigator(policy, motion__max_forward_m_s=1)
    assert node.settings.motion.max_forward_m_s == 1.0
    assert node.get_parameter("motion.max_forward_m_s").value == 1.0


def test_compressed_images_and_plain_twists(ros, plain_robot, policy):
    robot = plain_robot
    robot.images = False
    ros.navigator(policy, image_transport="compressed", enable_stamped_cmd_vel=False)
    publisher = robot.node.create_publisher(CompressedImage, "image/compressed", SENSOR_QOS)
    picture = np.full((24, 32, 3), (200, 30, 30), np.uint8)
    message = ros_images.compressed_from_rgb(picture, Time(), "camera")
    robot.node.create_timer(0.1, lambda: publisher.publish(message))
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    robot.wait_until_moving()
    assert policy.last_rgb.shape == (24, 32, 3)
    np.testing.assert_allclose(policy.last_rgb[12, 16], (200, 30, 30), atol=6)


def test_shutting_down_says_zero(driving, ros, waiting):
    with driving() as robot:
        node = next(node for node in ros.nodes if node.get_name() == "navigator")
        node.shut_down()
        waiting(lambda: not robot.is_moving(), "zero velocity")

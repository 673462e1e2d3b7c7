# SPDX-License-Identifier: Apache-2.0
"""The fault table of docs/safety.md, in the real node over DDS with the real simulator.

Every row ends in zero velocity within its bound, says why, and the node drives again afterwards.
"""

import math
import threading
import time

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

import torch
from faulty_world import Turning

from nvila_ros.actions import parse_action

pytestmark = pytest.mark.ros

COMMAND_BOUND_S, EMERGENCY_BOUND_S, SENSOR_BOUND_S = 0.25, 0.10, 0.50
IMAGE_AGE_S, ODOMETRY_AGE_S, SCAN_AGE_S, STUCK_S = 1.0, 0.5, 1.0, 1.0  # the settings' defaults


def repeating(world, name):
    """A source that publishes its last message for ever."""
    last = getattr(world, f"last_{name}")
    return lambda _message: last


def test_camera_freezes_with_its_stamp(world, turning):
    turning.start()

    def inject():
        world.image_fault = repeating(world, "image")

    bound_s = IMAGE_AGE_S + SENSOR_BOUND_S
    turning.judge("camera repeats one message", bound_s, inject, "waiting", "no image")
    turning.goes_on()


def test_camera_freezes_while_its_stamps_run_on(world, turning):
    turning.start()
    picture = world.last_image.data

    def fault(message):
        message.data = picture
        return message

    def inject():
        world.image_fault = fault

    # It is seen when the robot has turned by 10 degrees, and then it is stale.
    seen_s = math.radians(10.0) / Turning.TURN_RAD_S + 0.2
    bound_s = seen_s + IMAGE_AGE_S + SENSOR_BOUND_S
    turning.judge("camera shows one picture", bound_s, inject, "waiting", "no image")
    turning.goes_on()


def test_camera_dies(world, turning):
    turning.start()

    def inject():
        world.image_fault = lambda _message: None

    bound_s = IMAGE_AGE_S + SENSOR_BOUND_S
    turning.judge("camera dies", bound_s, inject, "waiting", "no image")
    turning.goes_on()


def test_camera_that_stays_dead_ends_the_episode(world, turning):
    turning.start(patience_s=0.5)

    def inject():
        world.image_fault = lambda _message: None

    bound_s = IMAGE_AGE_S + SENSOR_BOUND_S
    turning.judge("camera dies for good", bound_s, inject, "idle", "STALE_SENSOR")
    turning.goes_on(anew=True)


def test_image_stamps_jump_back(world, turning):
    turning.start()
    shift_s = [100]

    def fault(message):
        message.header.stamp.sec += shift_s[0]
        return message

    world.image_fault = fault
    time.sleep(0.5)
    world.wait_until_moving()

    def inject():
        shift_s[0] = 0

    # The next image carries the jump: one period of the camera.
    turning.judge_first_zero("image stamps jump back", 0.1 + COMMAND_BOUND_S, inject)
    turning.goes_on()


def test_odometry_freezes(world, turning):
    turning.start()

    def inject():
        world.odometry_fault = repeating(world, "odometry")

    bound_s = ODOMETRY_AGE_S + SENSOR_BOUND_S
    turning.judge("odometry repeats one message", bound_s, inject, "waiting", "no odometry")
    turning.goes_on()


def test_odometry_stands_still_while_its_stamps_run_on(world, turning):
    turning.start(max_failed_primitives=1)
    pose = world.last_odometry.pose

    def fault(message):
        message.pose = pose
        return message

    def inject():
        world.odometry_fault = fault

    bound_s = STUCK_S + SENSOR_BOUND_S
    turning.judge("odometry shows no motion", bound_s, inject, "idle", "blocked")
    turning.goes_on(anew=True)


def test_odometry_is_no_number(world, turning):
    turning.start()

    def fault(message):
        message.pose.pose.position.x = math.nan
        return message

    def inject():
        world.odometry_fault = fault

    bound_s = ODOMETRY_AGE_S + SENSOR_BOUND_S
    turning.judge("odometry is NaN", bound_s, inject, "waiting", "no odometry")
    turning.goes_on()


def test_odometry_jumps(world, turning):
    turning.start(max_failed_primitives=1)

    def fault(message):
        message.pose.pose.position.x += 5.0
        return message

    def inject():
        world.odometry_fault = fault

    turning.judge("odometry jumps", COMMAND_BOUND_S, inject, "idle", "jumped")
    turning.goes_on(anew=True)


def test_wheels_turn_for_nothing(world, turning):
    """The robot gets a tenth of what its wheels were told, and odometry says so."""
    turning.start(remaps={"cmd_vel": "wheels"}, max_failed_primitives=1)

    def fault(message):
        message.twist.angular.z *= 0.1
        return message

    def inject():
        world.wheel_fault = fault

    bound_s = STUCK_S + SENSOR_BOUND_S
    turning.judge("wheels turn for nothing", bound_s, inject, "idle", "slip")
    turning.goes_on(anew=True)


def test_robot_slides_away(world, turning):
    """It turns as told, but leaves its spot by 0.5 m/s."""
    turning.start(max_failed_primitives=1)
    begin_s = []

    def fault(message):
        begin_s.append(time.monotonic())
        message.pose.pose.position.y += min(0.5 * (begin_s[-1] - begin_s[0]), 0.4)
        return message

    def inject():
        world.odometry_fault = fault

    # 15 cm are slip; a motion that begins meanwhile counts them anew.
    bound_s = 0.15 / 0.5 + 0.25 + COMMAND_BOUND_S
    turning.judge("robot slides away", bound_s, inject, "idle", "slip")
    turning.goes_on(anew=True)


def test_lidar_dies(world, turning):
    turning.start()

    def inject():
        world.scan_fault = lambda _message: None

    bound_s = SCAN_AGE_S + SENSOR_BOUND_S
    turning.judge("lidar dies", bound_s, inject, "waiting", "no scan")
    turning.goes_on()


@pytest.mark.parametrize(
    "fault, error, word",
    [
        ("model raises", RuntimeError("a bug"), "a bug"),
        ("GPU out of memory", torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    ],
)
def test_model_raises(turning, fault, error, word):
    turning.start()
    inject = turning.at_the_next_question(raises=error)
    turning.judge(fault, COMMAND_BOUND_S, inject, "idle", word)
    turning.goes_on(anew=True)


def test_model_writes_garbage(turning):
    """A model without grammar: text that is no action is never guessed at."""
    turning.start(max_refusals=3, settle_time_s=0.0)

    def answer():
        return parse_action("Go ahead, maybe \\u2603 0x7f move move!!")

    def inject():
        turning.policy.next_answer = answer
        return turning.end_of_motion_s()

    turning.judge("model writes garbage", COMMAND_BOUND_S, inject, "idle", "unusable")
    turning.goes_on(anew=True)


def test_model_hangs(turning):
    turning.start(decision_timeout_s=1.0)
    release = threading.Event()
    inject = turning.at_the_next_question(waits_for=release)
    # It is asked a little before the motion ends; nothing moves after that.
    bound_s = 0.15 + 0.05 + COMMAND_BOUND_S
    turning.judge("model hangs", bound_s, inject, "idle", "not answered")
    release.set()
    turning.goes_on(anew=True)


def test_nobody_listens_to_cmd_vel(world, turning):
    """The robot's base has gone; what the node would say is read from the node itself."""
    turning.start(remaps={"cmd_vel": "wheels"})
    say = turning.node._outputs.say_velocity

    def hear_and_say(velocity):
        world.note(not velocity.is_zero())
        say(velocity)

    turning.node._outputs.say_velocity = hear_and_say
    fault = "cmd_vel subscriber gone"
    turning.judge(fault, COMMAND_BOUND_S, world.stop_listening, "waiting", "nobody listens")
    world.listen()
    turning.goes_on()

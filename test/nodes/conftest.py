# SPDX-License-Identifier: Apache-2.0
"""Real nodes over a real DDS: each test has its own domain, its own context and a robot."""

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from geometry_msgs.msg import Twist, TwistStamped  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from nvila_ros import ros_images  # noqa: E402
from nvila_ros.actions import ACTIONS  # noqa: E402
from nvila_ros.models.prompt import navigation_prompt  # noqa: E402
from nvila_ros.nodes.navigator_node import NavigatorNode  # noqa: E402
from nvila_ros.policy import Decision  # noqa: E402
from nvila_ros.ros_environment import (  # noqa: E402
    added_environment,
    process_environment,
    share_folder,
)
from nvila_ros.ros_main import COMMAND_QOS, EVENT_QOS, SENSOR_QOS, STATE_QOS  # noqa: E402

os.environ.update(added_environment(os.environ))
# Domains 1 to 100 are free of clashes with ephemeral ports; processes start at different ones.
_DOMAINS = itertools.count(os.getpid() * 7)
DEADLINE_S = 20.0


class DrivingPolicy:
    """Goes forward for ever, unless `next_answer` says otherwise; it checks instructions."""

    def __init__(self):
        self.next_answer = None
        self.num_observed = 0

    def reset(self, instruction):
        navigation_prompt(instruction, 7)

    def observe(self, rgb, x_m, y_m, yaw_rad, stamp_s):
        self.num_observed += 1
        self.last_rgb = rgb
        return True

    def decide(self):
        answer = self.next_answer() if self.next_answer else ACTIONS[3]
        return Decision(
            action=answer,
            confidence=0.9,
            probabilities=(0.1,) * 10,
            latency_s=0.001,
            num_encoded_frames=1,
            frame_indices=(None, 0),
            stamp_s=0.0,
        )

    def tried(self, decision):
        self.last_tried = decision

    def prepare(self):
        return 0


class Ros:
    """One domain: nodes, and one thread that spins them."""

    def __init__(self):
        number = next(_DOMAINS)
        self.domain_id = 1 + number % 100
        self.namespace = f"test_{number}"  # other tests on this machine may share the domain
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain_id)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.nodes = []
        self.closing = False
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self):
        while not self.closing:
            self.executor.spin_once(timeout_sec=0.05)

    def add(self, node):
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def node(self, name):
        """A plain node of this test's namespace."""
        made = rclpy.create_node(name, context=self.context, namespace=self.namespace)
        return self.add(made)

    def navigator(self, policy=None, **parameters):
        """The real node; `policy` is its model, or None for the real loader."""
        options = {
            "context": self.context,
            "namespace": self.namespace,
            "parameter_overrides": [
                Parameter(name.replace("__", "."), value=value)
                for name, value in parameters.items()
            ],
        }
        if policy is not None:
            options["load_policy"] = lambda _settings: policy
        return self.add(NavigatorNode(**options))

    def close(self):
        self.closing = True
        self.thread.join(5.0)
        for node in self.nodes:
            node.destroy_node()
        self.executor.shutdown(timeout_sec=2.0)
        rclpy.try_shutdown(context=self.context)


def wait_for(condition, what, deadline_s=DEADLINE_S):
    """Waits on an event, never for a time."""
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError(f"not within {deadline_s} s: {what}")


class Robot:
    """Camera, odometry and wheels: publishes what a robot would, and moves as cmd_vel says."""

    def __init__(self, ros, twist=TwistStamped):
        self.node = ros.node("robot")
        self.pose = [0.0, 0.0, 0.0]
        self.command = None
        self.num_commands = 0
        self.last_moving_s = -math.inf
        self.state, self.decisions, self.primitives = {}, [], []
        self.images = self.odometry = True
        self.image = ros_images.from_rgb(
            np.full((24, 32, 3), 128, np.uint8), self.node.get_clock().now().to_msg(), "camera"
        )
        subscribe = self.node.create_subscription
        subscribe(twist, "cmd_vel", self._on_velocity, COMMAND_QOS)
        subscribe(String, "navigator/state", self._on_state, STATE_QOS)
        subscribe(String, "navigator/decision", self._collect(self.decisions), STATE_QOS)
        subscribe(String, "navigator/primitive", self._collect(self.primitives), EVENT_QOS)
        self._image_publisher = self.node.create_publisher(Image, "image", SENSOR_QOS)
        self._odometry_publisher = self.node.create_publisher(Odometry, "odom", SENSOR_QOS)
        self._instruction_publisher = self.node.create_publisher(String, "instruction", EVENT_QOS)
        self.node.create_timer(0.02, self._on_timer)
        self._ticks = 0

    def _collect(self, rows):
        return lambda message: rows.append(json.loads(message.data))

    def _on_state(self, message):
        self.state = json.loads(message.data)

    def _on_velocity(self, message):
        twist = message.twist if isinstance(message, TwistStamped) else message
        self.command = (twist.linear.x, twist.angular.z)
        self.num_commands += 1
        if self.command != (0.0, 0.0):
            self.last_moving_s = time.monotonic()

    def _on_timer(self):
        self._ticks += 1
        if self.command:
            self.pose[2] += self.command[1] * 0.02
            self.pose[0] += self.command[0] * math.cos(self.pose[2]) * 0.02
            self.pose[1] += self.command[0] * math.sin(self.pose[2]) * 0.02
        if self.odometry:
            self.say_odometry(*self.pose)
        if self.images and self._ticks % 3 == 0:
            self._image_publisher.publish(self.image)

    def say_odometry(self, x_m, y_m, yaw_rad):
        message = Odometry()
        message.pose.pose.position.x, message.pose.pose.position.y = x_m, y_m
        message.pose.pose.orientation.z = math.sin(yaw_rad / 2)
        message.pose.pose.orientation.w = math.cos(yaw_rad / 2)
        self._odometry_publisher.publish(message)

    def instruct(self, text):
        wait_for(self._instruction_publisher.get_subscription_count, "a navigator that listens")
        self._instruction_publisher.publish(String(data=text))

    def is_moving(self):
        return self.command is not None and self.command != (0.0, 0.0)

    def wait_until_moving(self):
        wait_for(self.is_moving, f"a robot that moves, state {self.state}")

    def wait_for_state(self, phase, word=""):
        wait_for(
            lambda: self.state.get("state") == phase and word in json.dumps(self.state),
            f"state {phase!r} with {word!r}, the last is {self.state}",
        )

    def expect_standing(self, num_commands=10):
        """Zero is renewed, again and again."""
        first = self.num_commands + 1
        wait_for(lambda: self.num_commands >= first, "a command")
        begin_s = time.monotonic()
        wait_for(lambda: self.num_commands >= first + num_commands, "further commands")
        assert self.command == (0.0, 0.0)
        assert self.last_moving_s < begin_s

    def call(self, service):
        client = self.node.create_client(Trigger, f"navigator/{service}")
        wait_for(client.service_is_ready, f"service {service}")
        future = client.call_async(Trigger.Request())
        wait_for(future.done, f"an answer of {service}")
        return future.result()


@pytest.fixture
def ros():
    made = Ros()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_ros():
    """One domain for a whole file: what takes seconds to start is started once."""
    made = Ros()
    yield made
    made.close()


@pytest.fixture(scope="session")
def start_node():
    """Starts one of our nodes as the process that people start; ends it in any case."""
    processes = []

    def start(ros, node, *arguments):
        command = [sys.executable, "-m", f"nvila_ros.nodes.{node}_node", "--ros-args"]
        command += ["-r", f"__ns:=/{ros.namespace}", *arguments]
        environment = process_environment()
        environment.update(ROS_DOMAIN_ID=str(ros.domain_id), OMP_NUM_THREADS="1")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=share_folder(), env=environment, **pipes)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def robot(ros):
    return Robot(ros)


@pytest.fixture
def plain_robot(ros):
    """A robot that takes Twist."""
    return Robot(ros, Twist)


@pytest.fixture
def robot_free(ros):
    """Only the watching half of a robot: something else publishes image and odometry."""
    made = Robot(ros)
    made.images = made.odometry = False
    return made


@pytest.fixture
def policy():
    return DrivingPolicy()


@pytest.fixture
def driving(ros, robot, policy):
    """A robot that is under way at a speed that lets faults happen on the way."""

    @contextmanager
    def start(**parameters):
        ros.navigator(policy, **{"motion__max_forward_m_s": 0.1, **parameters})
        robot.wait_for_state("idle")
        robot.instruct("Go through the door.")
        robot.wait_until_moving()
        yield robot

    return start


@pytest.fixture(scope="session")
def waiting():
    return wait_for

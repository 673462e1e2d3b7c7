# SPDX-License-Identifier: Apache-2.0
"""Stand-ins around the real nodes: a model that only drives, a robot of numbers, one DDS domain."""

import itertools
import json
import math
import os
import threading
import time

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from nvila_ros import ros_images
from nvila_ros.actions import ACTIONS
from nvila_ros.decision import Decision
from nvila_ros.history_strip import strip_jpeg
from nvila_ros.models.prompt import navigation_prompt
from nvila_ros.nodes.navigator_node import NavigatorNode
from nvila_ros.ros_environment import added_environment
from nvila_ros.ros_main import COMMAND_QOS, EVENT_QOS, SENSOR_QOS, STATE_QOS

os.environ.update(added_environment(os.environ))
# Domains 1 to 100 are free of clashes with ephemeral ports; processes start at different ones.
_DOMAINS = itertools.count(os.getpid() * 7)
DEADLINE_S = 45.0  # a loaded machine starts a process in half a minute
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "shutdown": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
}


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

    def strip(self):
        return strip_jpeg(np.zeros((8, 16, 16, 3), np.uint8), "an answer")

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
        self.spinning = threading.Lock()  # what is waited on must not be destroyed meanwhile
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self):
        while not self.closing:
            with self.spinning:
                self.executor.spin_once(timeout_sec=0.02)
            time.sleep(0.0001)  # a lock is not fair: let others have it

    def add(self, node):
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def node(self, name, namespace=None):
        """A plain node of this test's namespace."""
        namespace = namespace or self.namespace
        made = rclpy.create_node(name, context=self.context, namespace=namespace)
        return self.add(made)

    def navigator(self, policy=None, namespace=None, cli_args=None, **parameters):
        """The real node; `policy` is its model, or None for the real loader."""
        options = {
            "context": self.context,
            "cli_args": cli_args,
            "namespace": namespace or self.namespace,
            "parameter_overrides": [
                Parameter(name.replace("__", "."), value=value)
                for name, value in parameters.items()
            ],
        }
        if policy is not None:
            options["load_policy"] = lambda _settings: policy
        return self.add(NavigatorNode(**options))

    def remove(self, node):
        """Ends one node; the others live on."""
        with self.spinning:
            if isinstance(node, NavigatorNode):
                node.shut_down()
            self.nodes.remove(node)
            self.executor.remove_node(node)
            node.destroy_node()

    def close(self):
        self.closing = True
        self.thread.join(5.0)
        for node in self.nodes:
            if isinstance(node, NavigatorNode):
                node.shut_down()
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

    def __init__(self, ros, twist=TwistStamped, namespace=None):
        self.node = ros.node("robot", namespace)
        self.pose = [0.0, 0.0, 0.0]
        self.command = None
        self.num_commands = 0
        self.last_moving_s = -math.inf
        self.state, self.decisions, self.primitives = {}, [], []
        self.insisted = None  # the episode after which it was told once more
        self.images = self.odometry = self.odometry_stamps = True
        self.image = None  # one to publish for ever, else a new noisy one each time
        self.time_shift_s = 0.0  # of the images' stamps
        self._noise = np.random.default_rng(0)
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
            self._image_publisher.publish(self.image or self.picture())

    def stamp(self):
        shift = Duration(nanoseconds=int(self.time_shift_s * 1e9))
        return (self.node.get_clock().now() + shift).to_msg()

    def picture(self):
        rgb = self._noise.integers(0, 255, (24, 32, 3), np.uint8)
        return ros_images.from_rgb(rgb, self.stamp(), "camera")

    def say_odometry(self, x_m, y_m, yaw_rad):
        message = Odometry()
        if self.odometry_stamps:
            message.header.stamp = self.node.get_clock().now().to_msg()
        message.header.frame_id = "odom"
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
        def moves():
            self.insist()
            return self.is_moving()

        wait_for(moves, f"a robot that moves, state {self.state}")

    def insist(self):
        """A network of random weights may begin with STOP: then it is told once more."""
        episode = self.state.get("episode")
        if self.state.get("result") == "SUCCEEDED" and episode != self.insisted:
            self.insisted = episode
            self.instruct("Go through the red door.")

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

    def call(self, service, kind=Trigger, request=None):
        client = self.node.create_client(kind, f"navigator/{service}")
        wait_for(client.service_is_ready, f"service {service}")
        future = client.call_async(request or kind.Request())
        wait_for(future.done, f"an answer of {service}")
        return future.result()

    def change_state(self, label):
        """As a lifecycle manager does; says whether the node took it."""
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[label]))
        return self.call("change_state", ChangeState, request).success

    def lifecycle(self):
        return self.call("get_state", GetState).current_state.label

    def set_parameters(self, **values):
        """As `ros2 param set` does; the reasons of refusals, '' for each that was taken."""
        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        request = SetParameters.Request(parameters=parameters)
        results = self.call("set_parameters", SetParameters, request).results
        return ["" if result.successful else result.reason for result in results]

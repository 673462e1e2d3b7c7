# SPDX-License-Identifier: Apache-2.0
"""The real simulator, a relay that spoils what the navigator hears, and a clock on its stops."""

import json
import time

from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, LaserScan
from stand_ins import DrivingPolicy, Robot, wait_for
from std_msgs.msg import Bool, String
from stop_clock import StallMeter, Stop

from nvila_ros.actions import ACTIONS
from nvila_ros.ros_main import COMMAND_QOS, EVENT_QOS, SENSOR_QOS, STATE_QOS

STILL_M_S, STILL_RAD_S = 0.005, 0.01
SAID_AGAIN_S = 5.0
SIMULATOR = {"seed": 900001, "image_width_px": 64, "image_height_px": 48, "num_scan_rays": 36}


class FaultyWorld:
    """Simulator process, relay, and what the robot really did."""

    def __init__(self, ros, start_node):
        self.ros = ros
        self.image_fault = self.odometry_fault = self.scan_fault = self.wheel_fault = None
        self.last_image = self.last_odometry = None
        self.state, self.decisions, self.commands = {}, [], []
        self.insisted = None
        self.moved_s = self.commanded_s = 0.0  # when it last moved, was last told to
        self.stood_s = 0.0  # when it was first told to stand, since it was last told to move
        self.zeroed_s = 0.0  # when it was first told to stand, since this was last set to zero
        self.speed = (0.0, 0.0)
        self.stalls = StallMeter()
        arguments = [
            word for name, value in SIMULATOR.items() for word in ("-p", f"{name}:={value}")
        ]
        for topic in ("image", "odom", "scan"):
            arguments += ["-r", f"{topic}:=sim/{topic}"]
        self.simulator = start_node(ros, "simulator", *arguments)
        self.node = ros.node("world")
        publish, subscribe = self.node.create_publisher, self.node.create_subscription
        self._images = publish(Image, "image", SENSOR_QOS)
        self._odometry = publish(Odometry, "odom", SENSOR_QOS)
        self._scans = publish(LaserScan, "scan", SENSOR_QOS)
        self._instructions = publish(String, "instruction", EVENT_QOS)
        self.emergency = publish(Bool, "emergency_stop", COMMAND_QOS)
        subscribe(Image, "sim/image", self._on_image, SENSOR_QOS)
        subscribe(Odometry, "sim/odom", self._on_odometry, SENSOR_QOS)
        subscribe(LaserScan, "sim/scan", self._on_scan, SENSOR_QOS)
        self._wheels = publish(TwistStamped, "cmd_vel", COMMAND_QOS)
        self._clock = publish(Clock, "world_clock", SENSOR_QOS)
        self.clock_shift_s = 0.0
        self._listeners = []
        self.listen()
        subscribe(String, "navigator/state", self._on_state, STATE_QOS)
        subscribe(String, "navigator/decision", self._on_decision, STATE_QOS)
        self.node.create_timer(0.02, self._tick_clock)
        wait_for(lambda: self.last_image is not None, "images of the simulator", 60.0)

    wait_for_state = Robot.wait_for_state
    insist = Robot.insist
    call = Robot.call
    change_state = Robot.change_state
    set_parameters = Robot.set_parameters
    lifecycle = Robot.lifecycle

    def listen(self):
        """Hears the commands, and those meant for `wheels`, which are passed on."""
        self.stop_listening()
        subscribe = self.node.create_subscription
        self._listeners = [
            subscribe(TwistStamped, "cmd_vel", self._on_command, COMMAND_QOS),
            subscribe(TwistStamped, "wheels", self._on_wheels, COMMAND_QOS),
        ]

    def stop_listening(self):
        """The robot's base goes away."""
        with self.ros.spinning:
            for listener in self._listeners:
                self.node.destroy_subscription(listener)
        self._listeners.clear()

    def navigator(self, policy, remaps=None, **parameters):
        """The real node; its names may be remapped."""
        rules = [word for pair in (remaps or {}).items() for word in ("-r", "{}:={}".format(*pair))]
        arguments = ["--ros-args", *rules] if rules else None
        return self.ros.navigator(policy, cli_args=arguments, **parameters)

    def heal(self):
        """No fault from here on."""
        self.image_fault = self.odometry_fault = self.scan_fault = self.wheel_fault = None

    def wait_for_odometry(self, count=3):
        """Some messages from now on: what healing changes must not fall into the next episode."""
        for _ in range(count):
            before = self.last_odometry
            wait_for(lambda before=before: self.last_odometry is not before, "odometry")

    def _on_image(self, message):
        self.last_image = message
        self._relay(message, self.image_fault, self._images)

    def _on_odometry(self, message):
        self.last_odometry = message
        twist = message.twist.twist
        self.speed = (twist.linear.x, twist.angular.z)
        if abs(self.speed[0]) > STILL_M_S or abs(self.speed[1]) > STILL_RAD_S:
            self.moved_s = time.monotonic()
        self._relay(message, self.odometry_fault, self._odometry)

    def _tick_clock(self):
        """The system's time, shifted: a clock that may jump."""
        now = self.node.get_clock().now() + Duration(nanoseconds=int(self.clock_shift_s * 1e9))
        self._clock.publish(Clock(clock=now.to_msg()))

    def _on_scan(self, message):
        self._relay(message, self.scan_fault, self._scans)

    def _on_wheels(self, message):
        self._relay(message, self.wheel_fault, self._wheels)

    @staticmethod
    def _relay(message, fault, publisher):
        spoiled = message if fault is None else fault(message)
        if spoiled is not None:
            publisher.publish(spoiled)

    def _on_command(self, message):
        command = (message.twist.linear.x, message.twist.angular.z)
        self.commands.append(command)
        self.note(command != (0.0, 0.0))

    def note(self, moves):
        """A command was given now."""
        if moves:
            self.commanded_s, self.stood_s = time.monotonic(), 0.0
            return
        now_s = time.monotonic()
        self.stood_s, self.zeroed_s = self.stood_s or now_s, self.zeroed_s or now_s

    def _on_state(self, message):
        self.state = json.loads(message.data)

    def _on_decision(self, message):
        self.decisions.append(json.loads(message.data))

    def instruct(self, text="Turn around."):
        wait_for(self._instructions.get_subscription_count, "a navigator that listens")
        self._instructions.publish(String(data=text))

    def set_off(self):
        """Says it until an episode begins, and waits until it moves.

        For a while DDS counts a process that died as a listener; what only it is told is lost.
        """
        before, said_s = self.state.get("episode"), 0.0

        def begins():
            nonlocal said_s
            if time.monotonic() - said_s > SAID_AGAIN_S:
                self.instruct()
                said_s = time.monotonic()
            return self.state.get("episode") != before

        wait_for(begins, "an episode that begins")
        self.wait_until_moving()

    def is_at_speed(self):
        return abs(self.speed[0]) > 0.05 or abs(self.speed[1]) > 0.1

    def wait_until_moving(self):
        """Until it is on its way, at speed, by a command from now on."""
        begin_s = time.monotonic()

        def moves():
            self.insist()
            fresh = self.commanded_s > begin_s and self.moved_s > begin_s
            return fresh and self.is_at_speed()

        wait_for(moves, f"a robot that moves, state {self.state}")

    def measure_first_zero(self, fault, bound_s, inject):
        """For faults that pass: the time until the first zero is commanded."""
        self.stalls.worst_s = 0.0
        self.zeroed_s = 0.0
        begin_s = time.monotonic()
        inject()
        wait_for(lambda: self.zeroed_s > begin_s, f"zero velocity after: {fault}")
        return Stop(fault, self.zeroed_s - begin_s, bound_s, self.stalls.worst_s)

    def measure(self, fault, bound_s, inject, by_odometry=False):
        """Injects, waits until nothing has moved for a while; the Stop is judged by the caller.

        `inject` may return when the fault really began, where that is later.
        """
        self.stalls.worst_s = 0.0
        begin_s = time.monotonic()
        begin_s = inject() or begin_s

        def last_s():
            return self.moved_s if by_odometry else self.commanded_s

        quiet_s = 0.6 + bound_s / 2
        wait_for(
            lambda: time.monotonic() - max(last_s(), begin_s) > quiet_s,
            f"a robot that stands after: {fault}",
            10.0 + 3.0 * bound_s,
        )
        # Without a zero (the node is dead, or nobody heard it) the last motion counts.
        stop_s = (0.0 if by_odometry else self.stood_s) or last_s()
        return Stop(fault, max(stop_s - begin_s, 0.0), bound_s, self.stalls.worst_s)


class Turning:
    """One navigator that turns left for ever on the word of its policy."""

    TURN_RAD_S = 0.3

    def __init__(self, world, measured_stops):
        self.world, self.measured_stops = world, measured_stops
        self.policy, self.node = DrivingPolicy(), None

    def start(self, **parameters):
        self.policy.next_answer = lambda: ACTIONS[6]
        settings = {"motion__max_turn_rad_s": self.TURN_RAD_S, "lost_after_decisions": 1000}
        self.node = self.world.navigator(self.policy, **{**settings, **parameters})
        self.world.wait_for_state("idle")
        self.world.instruct()
        self.world.wait_until_moving()
        return self

    def end(self):
        self.world.listen()
        if self.node is not None:
            self.world.ros.remove(self.node)
        count = self.world.node.count_publishers
        wait_for(lambda: not count("navigator/state"), "a node that has gone")

    def at_the_next_question(self, raises=None, waits_for=None):
        """An inject whose fault begins when the model is asked."""
        asked_s = []

        def answer():
            asked_s.append(time.monotonic())
            if waits_for is not None:
                waits_for.wait(60.0)
                return ACTIONS[6]
            raise raises

        def inject():
            self.policy.next_answer = answer
            wait_for(lambda: asked_s, "a question to the model")
            return asked_s[0]

        return inject

    def end_of_motion_s(self):
        """When the motion that is under way has ended."""
        self.world.zeroed_s = 0.0
        wait_for(lambda: self.world.zeroed_s, "the end of a motion")
        return self.world.zeroed_s

    def judge(self, fault, bound_s, inject, phase, word):
        stop = self.world.measure(fault, bound_s, inject)
        self.measured_stops.append(stop)
        self.world.wait_for_state(phase, word)
        assert stop.stop_s <= bound_s + stop.stall_s, stop.line()

    def judge_first_zero(self, fault, bound_s, inject):
        stop = self.world.measure_first_zero(fault, bound_s, inject)
        self.measured_stops.append(stop)
        assert stop.stop_s <= bound_s + stop.stall_s, stop.line()

    def goes_on(self, anew=False):
        """Healed, it drives again: by itself, or with the next instruction."""
        self.world.heal()
        self.policy.next_answer = lambda: ACTIONS[6]
        if anew:
            self.world.wait_for_odometry()
            self.world.instruct()
        self.world.wait_until_moving()

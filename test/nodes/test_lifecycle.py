# SPDX-License-Identifier: Apache-2.0
"""The lifecycle: as Nav2's manager drives it, by itself, wrongly, and twice side by side."""

import os
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetState
from stand_ins import DrivingPolicy, Robot, wait_for

from nvila_ros.nodes.lifecycle_bond import HEARTBEAT_TIMEOUT_S, Bond
from nvila_ros.ros_main import EVENT_QOS

pytestmark = pytest.mark.ros
SERVICE_TIMEOUT_S = 5.0  # of Nav2's lifecycle manager


class StandInManager:
    """As nav2_lifecycle_manager: one node after the other, each call with a time-out."""

    def __init__(self, ros, names):
        self.node = ros.node("lifecycle_manager")
        self.names = names
        self.transitions = []
        for name in names:
            self.node.create_subscription(
                TransitionEvent,
                f"{name}/transition_event",
                lambda event: self.transitions.append(event.goal_state.label),
                EVENT_QOS,
            )

    def _call(self, name, service, kind, request):
        client = self.node.create_client(kind, f"{name}/{service}")
        wait_for(client.service_is_ready, f"{name}/{service}")
        begin_s = time.monotonic()
        future = client.call_async(request)
        wait_for(future.done, f"an answer of {name}/{service}", SERVICE_TIMEOUT_S)
        self.longest_s = max(getattr(self, "longest_s", 0.0), time.monotonic() - begin_s)
        return future.result()

    def change(self, transition):
        for name in self.names:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert self._call(name, "change_state", ChangeState, request).success

    def states(self):
        calls = (self._call(name, "get_state", GetState, GetState.Request()) for name in self.names)
        return [answer.current_state.label for answer in calls]

    def startup(self):
        self.change(Transition.TRANSITION_CONFIGURE)
        self.change(Transition.TRANSITION_ACTIVATE)

    def reset(self):
        self.change(Transition.TRANSITION_DEACTIVATE)
        self.change(Transition.TRANSITION_CLEANUP)


def test_a_manager_is_not_kept_waiting_by_a_slow_model(ros, robot, policy):
    loading = {"seconds": 3.0}

    def load(_settings):
        time.sleep(loading["seconds"])
        return policy

    messages = []
    robot.node.create_subscription(DiagnosticArray, "/diagnostics", messages.append, EVENT_QOS)
    node = ros.navigator(policy, autostart=False)
    node._load_policy = load
    manager = StandInManager(ros, ["navigator"])
    assert manager.states() == ["unconfigured"]
    robot.wait_for_state("unconfigured")
    manager.startup()
    assert manager.states() == ["active"]
    assert manager.longest_s < 2.0  # of 3 seconds of loading
    robot.wait_for_state("loading")
    robot.instruct("Go through the door.")  # waits for the model

    def says_progress():
        rows = [status for array in messages for status in array.status]
        return any("for" in row.message and row.name.endswith("model") for row in rows)

    wait_for(says_progress, "progress on /diagnostics")
    robot.wait_until_moving()
    manager.reset()
    assert manager.states() == ["unconfigured"]
    robot.wait_for_state("unconfigured")
    assert not robot.is_moving()
    loading["seconds"] = 0.0
    manager.startup()
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    robot.wait_until_moving()
    wait_for(lambda: manager.transitions.count("active") == 2, "both activations")


def test_cleanup_ends_the_process_of_the_model_and_configure_takes_another(
    ros, robot, tiny_folder, tmp_path
):
    node = ros.navigator(model_path=str(tmp_path / "nowhere"))
    robot.wait_for_state("fault", "nowhere")
    assert robot.change_state("deactivate")
    assert robot.change_state("cleanup")
    assert robot.set_parameters(model_path=str(tiny_folder), min_confidence=0.0) == ["", ""]
    assert robot.change_state("configure")
    assert robot.change_state("activate")
    robot.wait_for_state("idle")
    process_id = node._worker.policy.process_id
    os.kill(process_id, 0)
    robot.instruct("Go through the door.")
    robot.wait_until_moving()
    assert robot.change_state("deactivate")
    wait_for(lambda: not robot.is_moving(), "zero velocity")
    assert robot.change_state("cleanup")
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_cleanup_while_the_model_loads(ros, robot, tiny_folder):
    ros.navigator(model_path=str(tiny_folder))
    robot.wait_for_state("loading")
    assert robot.change_state("deactivate")
    assert robot.change_state("cleanup")
    robot.wait_for_state("unconfigured")


def test_inactive_means_silent_and_deaf(ros, robot, policy):
    node = ros.navigator(policy, autostart=False)
    assert robot.change_state("configure")
    robot.wait_for_state("inactive")
    robot.instruct("Go through the door.")
    wait_for(lambda: node.inputs.num_refusals, "a refusal")
    assert "activate" in node.inputs.last_refusal
    assert robot.num_commands == 0
    assert robot.change_state("cleanup") and robot.lifecycle() == "unconfigured"


def test_shutdown_says_zero_first(driving, ros):
    with driving() as robot:
        request = ChangeState.Request(
            transition=Transition(id=Transition.TRANSITION_ACTIVE_SHUTDOWN)
        )
        assert robot.call("change_state", ChangeState, request).success
        wait_for(lambda: not robot.is_moving(), "zero velocity")
        assert robot.lifecycle() == "finalized"


def test_a_transition_that_throws_ends_still_and_unconfigured(ros, robot, policy):
    node = ros.navigator(policy, autostart=False)
    assert robot.change_state("configure")
    node._navigator.activate = lambda: 1 / 0
    assert not robot.change_state("activate")
    assert robot.lifecycle() == "unconfigured"
    robot.wait_for_state("unconfigured")
    assert robot.change_state("configure") and robot.change_state("activate")
    robot.wait_for_state("idle")


def test_two_robots_in_two_namespaces_do_not_hear_each_other(ros):
    robots = {}
    for side in ("left", "right"):
        namespace = f"{ros.namespace}/{side}"
        robots[side] = Robot(ros, namespace=namespace)
        ros.navigator(DrivingPolicy(), namespace=namespace)
    for robot in robots.values():
        robot.wait_for_state("idle")
    robots["left"].instruct("Go through the door.")
    robots["left"].wait_until_moving()
    assert not robots["right"].is_moving() and robots["right"].state["episode"] == 0
    robots["right"].instruct("Go through the door.")
    robots["right"].wait_until_moving()
    assert robots["left"].call("cancel").success
    robots["left"].wait_for_state("idle", "CANCELED")
    assert robots["right"].state["state"] in ("waiting", "thinking", "moving")


class FakeBondNode:
    """Takes what a bond says; bond's message is in no wheel."""

    def __init__(self):
        self.said = []
        self.create_publisher = lambda *_: SimpleNamespace(publish=self.said.append)
        self.get_name = lambda: "navigator"
        clock = SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: "now"))
        self.get_clock = lambda: clock
        self.destroy_timer = self.destroy_publisher = lambda _: None

    def create_timer(self, period_s, callback, clock):
        self.period_s, self.beat = period_s, callback


def test_the_bond_beats_and_ends():
    def message():
        return SimpleNamespace(header=SimpleNamespace())

    node = FakeBondNode()
    bond = Bond(node, message)
    node.beat()
    bond.end()
    first, last = node.said
    assert first.active and not last.active
    assert first.id == "navigator" and first.instance_id == last.instance_id
    assert first.heartbeat_period == node.period_s < first.heartbeat_timeout == HEARTBEAT_TIMEOUT_S


def test_an_executor_that_is_not_installed_is_refused_with_what_to_install(ros, robot, policy):
    ros.navigator(policy, executor="nav2")
    robot.wait_for_state("fault", "nav2-msgs")
    assert robot.lifecycle() == "unconfigured"
    assert robot.set_parameters(executor="primitives") == [""]
    assert robot.change_state("configure")
    robot.wait_for_state("inactive")

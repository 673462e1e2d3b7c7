# SPDX-License-Identifier: Apache-2.0
"""Faults that end or stop a whole process: the node's, or the model's own."""

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from stand_ins import wait_for

pytestmark = pytest.mark.ros

COMMAND_BOUND_S = 0.25
SIMULATOR_TIMEOUT_S = 0.5  # the base's own, as diff_drive_controller's


@pytest.fixture
def driving(world, start_node, tiny_folder):
    """The navigator's process, under way slowly with a model of random weights."""
    processes = []

    def start(**parameters):
        settings = {
            "model_path": tiny_folder,
            "min_confidence": 0.0,
            "motion.max_turn_rad_s": 0.3,
            "motion.max_forward_m_s": 0.1,
            **parameters,
        }
        words = [word for pair in settings.items() for word in ("-p", "{}:={}".format(*pair))]
        processes.append(start_node(world.ros, "navigator", *words))
        world.wait_for_state("idle")
        world.set_off()
        return processes[-1]

    world.state = {}
    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    wait_for(lambda: not world.node.count_publishers("navigator/state"), "a node that has gone")


def children(process):
    """Process ids of the children of a process."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [int(word) for word in path.read_text().split()]
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return sorted(set(found))


def judge(stop, measured_stops):
    measured_stops.append(stop)
    assert stop.stop_s <= stop.bound_s + stop.stall_s, stop.line()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_signals(world, driving, measured_stops, name):
    process = driving()
    fault = f"{name.name} of the node"
    judge(world.measure(fault, COMMAND_BOUND_S, lambda: process.send_signal(name)), measured_stops)
    assert process.wait(20) == 0


def test_sigkill_of_the_node(world, driving, measured_stops):
    """No last word: the base's own time-out stops it, and the model's process ends by itself."""
    process = driving()
    (model,) = children(process)
    bound_s = SIMULATOR_TIMEOUT_S + COMMAND_BOUND_S
    stop = world.measure("SIGKILL of the node", bound_s, process.kill, by_odometry=True)
    judge(stop, measured_stops)
    wait_for(lambda: not Path(f"/proc/{model}").exists(), "a model process that has ended")


def test_model_process_is_killed(world, driving, measured_stops):
    process = driving()
    (model,) = children(process)
    fault = "model process killed"
    judge(
        world.measure(fault, COMMAND_BOUND_S, lambda: os.kill(model, signal.SIGKILL)),
        measured_stops,
    )
    world.wait_for_state("idle", "MODEL_ERROR")  # loaded again
    assert children(process) != [model]
    world.set_off()


def test_model_process_hangs(world, driving, measured_stops):
    """A model that does not answer is killed after its time, and loaded again."""
    process = driving(decision_timeout_s=1.0)
    (model,) = children(process)
    os.kill(model, signal.SIGSTOP)
    # What it was asked before is driven to its end; from then on nothing moves.
    longest_motion_s = 0.75 / 0.1 + 1.0
    begin_s = time.monotonic()
    wait_for(lambda: world.state["result"] == "MODEL_ERROR", "an end", longest_motion_s + 5.0)
    assert world.commanded_s - begin_s < longest_motion_s + 1.0
    assert world.commands[-1] == (0.0, 0.0)
    wait_for(lambda: not Path(f"/proc/{model}").exists(), "a model process that was killed")
    world.wait_for_state("idle", "not answered")
    world.set_off()

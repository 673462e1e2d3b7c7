# SPDX-License-Identifier: Apache-2.0
"""Real nodes over a real DDS: each test has its own domain, its own context and a robot."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")
sys.path.append(str(Path(__file__).parent))

from faulty_world import FaultyWorld, Turning
from geometry_msgs.msg import Twist
from stand_ins import DrivingPolicy, Robot, Ros, wait_for

from nvila_ros.ros_environment import process_environment, share_folder


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


@pytest.fixture(scope="module")
def world(shared_ros, start_node):
    return FaultyWorld(shared_ros, start_node)


@pytest.fixture
def turning(world, measured_stops):
    """A robot that turns left for ever, and the judge of what a fault did to it."""
    made = Turning(world, measured_stops)
    world.heal()
    yield made
    made.end()


_STOPS = []


@pytest.fixture(scope="session")
def measured_stops():
    """Collects what the fault tests measured; printed at the end."""
    return _STOPS


def pytest_terminal_summary(terminalreporter):
    if _STOPS:
        terminalreporter.section("stop times after faults")
        for stop in _STOPS:
            terminalreporter.line(stop.line())


@pytest.fixture(scope="session")
def waiting():
    return wait_for

# SPDX-License-Identifier: Apache-2.0
"""The nodes as the processes that people start: parameter files, signals, a whole episode."""

import os
import signal
import time

import pytest
import yaml

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from stand_ins import wait_for

from nvila_ros.config import load
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.nodes.simulated_robot import SimulatorConfig
from nvila_ros.ros_environment import share_folder

pytestmark = pytest.mark.ros
ROOT = share_folder()


def tiny_model(folder):
    """Parameters: a network of random weights, whose every choice is a guess."""
    return ("-p", f"model_path:={folder}", "-p", "min_confidence:=0.0")


@pytest.fixture
def start(ros, start_node):
    return lambda node, *arguments: start_node(ros, node, *arguments)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_zero_velocity_and_exit_code_0(start, robot, tiny_folder, name):
    navigator = start("navigator", *tiny_model(tiny_folder))
    robot.wait_for_state("idle")
    # The tiny network is random, but the same every time: it does not stop at once.
    robot.instruct("Go through the red door.")
    robot.wait_until_moving()
    navigator.send_signal(name)
    output, _ = navigator.communicate(timeout=20)
    assert navigator.returncode == 0, output
    assert "Traceback" not in output
    deadline_s = time.monotonic() + 5.0
    while robot.command != (0.0, 0.0) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert robot.command == (0.0, 0.0)


def test_an_unknown_key_in_a_parameter_file_is_answered_with_the_nearest(start, robot, tmp_path):
    path = tmp_path / "wrong.yaml"
    content = {"/**/navigator": {"ros__parameters": {"motion": {"max_forward_ms": 0.2}}}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    navigator = start("navigator", "--params-file", str(path))
    robot.wait_for_state("fault", "did you mean 'max_forward_m_s'?")
    assert navigator.poll() is None and not robot.is_moving()


def test_the_shipped_files_hold_every_parameter_with_its_default():
    read = {}
    for name, cls in (("navigator", NavigatorConfig), ("simulator", SimulatorConfig)):
        content = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
        written = content[f"/**/{name}"]["ros__parameters"]
        assert list(written) == list(cls.__dataclass_fields__)
        read[name] = load(cls, written, name)
    assert read["navigator"].motion.angle_tolerance_rad == pytest.approx(0.0524, abs=1e-4)
    assert read["simulator"] == SimulatorConfig()


def test_simulator_and_navigator_with_the_shipped_files_drive(start, robot_free, tiny_folder):
    """Two processes, simulated time, parameter files: the robot moves in the apartment."""
    simulator = start("simulator", "--params-file", str(ROOT / "config" / "simulator.yaml"))
    navigator = start(
        "navigator",
        "--params-file",
        str(ROOT / "config" / "navigator.yaml"),
        *(*tiny_model(tiny_folder), "-p", "use_sim_time:=true"),
    )
    observer = robot_free
    observer.wait_for_state("idle")
    observer.instruct("Go through the red door.")
    observer.wait_until_moving()
    wait_for(lambda: observer.decisions, "a decision")  # which may come after what it moves
    assert observer.decisions[0]["sentence"].startswith("The next action is")
    for process in (navigator, simulator):
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0 and "Traceback" not in output, output


def test_libexec_wrappers_can_be_run_by_ros():
    for name in ("dashboard_node", "navigator_node", "simulator_node"):
        assert os.access(ROOT / "libexec" / name, os.X_OK)

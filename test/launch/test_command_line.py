# SPDX-License-Identifier: Apache-2.0
"""The real ros2 launch, lifecycle, param, topic and service tools, as a new user would call them.

They are in no registry: without a ROS installation (or the tools' sources on PYTHONPATH) this is
skipped, and test/nodes calls the same services itself.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")
pytest.importorskip("ros2cli", reason="the ros2 tools are in no registry; source a ROS 2")
pytest.importorskip("launch_ros", reason="ROS's launch is in no registry; source a ROS 2")

from nvila_ros.ros_environment import process_environment, share_folder

pytestmark = [pytest.mark.ros, pytest.mark.slow]
ROOT = share_folder()
ROS2 = [sys.executable, "-c", "import sys; from ros2cli.cli import main; sys.exit(main())"]
SENTENCE = "Turn left and go through the cyan doorway."


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The package as an installation would lay it out, found through the ament index."""
    prefix = tmp_path_factory.mktemp("prefix")
    (prefix / "lib").mkdir()
    (prefix / "lib" / "nvila_ros").symlink_to(ROOT / "libexec")
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    (index / "nvila_ros").touch()
    share = prefix / "share" / "nvila_ros"
    share.mkdir()
    for name in ("launch", "config"):
        shutil.copytree(ROOT / name, share / name)
    shutil.copy(ROOT / "package.xml", share)
    made = process_environment()
    paths = [str(prefix), *filter(None, [made.get("AMENT_PREFIX_PATH")]), sys.prefix]
    made["AMENT_PREFIX_PATH"] = os.pathsep.join(paths)
    made["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [made.get("PYTHONPATH")])])
    made["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), made["PATH"]])
    made.update(ROS_DOMAIN_ID=str(1 + os.getpid() % 90), OMP_NUM_THREADS="1", MUJOCO_GL="egl")
    return made


@pytest.fixture(scope="module")
def ros2(environment):
    """Runs one command; what it printed."""

    def run(*words, timeout_s=40.0):
        done = subprocess.run(
            [*ROS2, *words], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def launched(environment, ros2):
    """simulation.launch.py, running."""
    command = [*ROS2, "launch", "nvila_ros", "simulation.launch.py", "seed:=900000"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end_s = time.monotonic() + 90.0
    while "idle" not in ros2("topic", "echo", "--once", "/navigator/state"):
        assert time.monotonic() < end_s and process.poll() is None
    yield process
    process.send_signal(signal.SIGINT)  # to the launch process alone, as Ctrl-C would be handled
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "has died" not in output, output


def test_arguments_are_readable(ros2):
    shown = ros2("launch", "nvila_ros", "navigate.launch.py", "--show-args")
    assert "'cmd_vel_topic':" in shown and "cmd_vel_nav beside Nav2" in shown


def test_executables_are_found(ros2):
    assert {"navigator_node", "simulator_node"} <= set(
        ros2("pkg", "executables", "nvila_ros").split()
    )


def test_a_new_users_session(launched, ros2):
    assert {"/navigator", "/simulator"} <= set(ros2("node", "list").split())
    assert "active" in ros2("lifecycle", "get", "/navigator")
    assert "0.5" in ros2("param", "get", "/navigator", "motion.max_forward_m_s")
    name = ("/navigator", "motion.max_forward_m_s")
    assert "successful" in ros2("param", "set", *name, "0.3")
    assert "out of range" in ros2("param", "set", *name, "9.0")
    assert "cleanup" in ros2("param", "set", "/navigator", "model_path", "/x")
    message = f"{{data: '{SENTENCE}'}}"
    kind = "std_msgs/msg/String"
    ros2("topic", "pub", "--once", "-w", "1", "/instruction", kind, message)
    decision = ros2("topic", "echo", "--once", "--full-length", "/navigator/decision")
    assert "The next action is" in decision
    assert "success=True" in ros2("service", "call", "/navigator/pause", "std_srvs/srv/Trigger")
    for transition, state in (
        ("deactivate", "inactive"),
        ("cleanup", "unconfigured"),
        ("configure", "inactive"),
        ("activate", "active"),
    ):
        assert "successful" in ros2("lifecycle", "set", "/navigator", transition)
        assert state in ros2("lifecycle", "get", "/navigator")

# SPDX-License-Identifier: Apache-2.0
"""The set-up script: what it finds on a machine, and the one command it names for what lacks."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_env(monkeypatch, tmp_path):
    """The module, with a virtual environment of its own that nobody uses."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / "venv" / "stamp")
    return module


def fake_ros(folder: Path) -> Path:
    """A folder that makes `import rclpy` work."""
    (folder / "rclpy").mkdir(parents=True)
    (folder / "rclpy" / "__init__.py").write_text("")
    return folder


def test_this_python_is_supported(setup_env):
    assert setup_env.supported_version(sys.executable) in setup_env.SUPPORTED
    assert setup_env.supported_version("/bin/false") is None


def test_without_a_supported_python_the_message_names_a_command(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, "supported_version", lambda _python: None)
    with pytest.raises(setup_env.SetupError, match="apt-get install -y python3"):
        setup_env.find_python()


def test_a_sourced_ros_is_found(setup_env, monkeypatch, tmp_path):
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/ros/jazzy")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("PYTHONPATH", str(fake_ros(tmp_path / "ros")))
    assert setup_env.find_sourced_ros(sys.executable) == "jazzy"


def test_without_a_sourced_ros_the_wheels_are_taken(setup_env, monkeypatch):
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert setup_env.find_sourced_ros(sys.executable) is None


def test_a_ros_for_another_python_is_not_used(setup_env, monkeypatch, tmp_path, capsys):
    broken = fake_ros(tmp_path / "ros")
    (broken / "rclpy" / "__init__.py").write_text("raise ImportError('other Python')")
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/ros/jazzy")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    assert setup_env.find_sourced_ros(sys.executable) is None
    assert "cannot import rclpy" in capsys.readouterr().out


def test_the_hash_follows_what_decides(setup_env, monkeypatch, tmp_path):
    first = setup_env.setup_hash(sys.executable, None)
    assert setup_env.setup_hash(sys.executable, None) == first
    assert setup_env.setup_hash(sys.executable, "jazzy") != first
    (tmp_path / "constraints.txt").write_text("torch==0")
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    assert setup_env.setup_hash(sys.executable, None) != first


def test_beside_ros_numpy_1_replaces_numpy_2(setup_env):
    pins = setup_env.pins_beside_ros()
    lines = [line for line in pins.splitlines() if line.startswith("numpy")]
    assert lines == ["numpy==1.26.4"]
    assert "torch==" in pins


def test_a_missing_library_names_its_command_to_users_and_installs_for_root(setup_env, monkeypatch):
    calls = []
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(setup_env.os, "geteuid", lambda: 1000)
    with pytest.raises(setup_env.SetupError, match=r"sudo apt-get install .* libegl1"):
        setup_env.apt_install("libegl1", "libEGL is missing")
    monkeypatch.setattr(setup_env.os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        setup_env.subprocess,
        "run",
        lambda command, **_: calls.append(command) or subprocess.CompletedProcess(command, 0),
    )
    setup_env.apt_install("libegl1", "libEGL is missing")
    assert [command[1] for command in calls] == ["update", "install"]


def test_a_python_without_venv_names_its_package(setup_env, monkeypatch):
    versions = {"import venv, ensurepip": None}
    monkeypatch.setattr(setup_env, "answer", lambda command: versions.get(command[-1], "3.11"))
    monkeypatch.setattr(setup_env.os, "geteuid", lambda: 1000)
    with pytest.raises(setup_env.SetupError, match=r"python3\.11-venv"):
        setup_env.make_venv(sys.executable, None)


def test_links_lead_to_launch_config_and_executables(setup_env):
    setup_env.link_shared_files()
    setup_env.link_shared_files()
    venv = setup_env.VENV
    assert (venv / "share/nvila_ros/launch/navigate.launch.py").is_file()
    assert (venv / "share/nvila_ros/config/fastdds.xml").is_file()
    assert (venv / "share/ament_index/resource_index/packages/nvila_ros").is_file()
    assert os.access(venv / "lib/nvila_ros/navigator_node", os.X_OK)


def test_annotations_are_no_code_on_pythons_that_are_too_old():
    """They get as far as the message that names the Python to install."""
    for name in ("setup_env.py", "probe_graphics.py"):
        source = (ROOT / "tools" / name).read_text(encoding="utf-8")
        assert "from __future__ import annotations" in source


def test_graphics_probe_answers_for_this_machine():
    probe = [sys.executable, str(ROOT / "tools" / "probe_graphics.py")]
    environment = {**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    done = subprocess.run(probe, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def installs(setup_env, monkeypatch):
    """Runs the script with its arguments; returns which sets of packages it installed."""
    installed = []
    monkeypatch.setattr(setup_env, "setup_hash", lambda _python, _ros: "hash")
    monkeypatch.setattr(setup_env, "ensure_graphics", lambda: None)
    monkeypatch.setattr(setup_env, "make_venv", lambda _python, _ros: None)
    monkeypatch.setattr(setup_env, "install_packages", lambda _ros, what: installed.append(what))

    def run(*arguments):
        installed.clear()
        monkeypatch.setattr(sys, "argv", ["setup_env.py", *arguments])
        assert setup_env.main() == 0
        return list(installed)

    return run


def test_the_demo_installs_less_and_going_to_and_fro_installs_once(installs):
    assert installs("--for", "demo") == ["demo"]
    assert installs("--for", "demo") == []
    assert installs() == ["everything"]
    assert installs() == installs("--for", "demo") == installs() == []


def test_a_change_installs_again_what_was_there(setup_env, installs, monkeypatch):
    assert installs() == ["everything"]
    monkeypatch.setattr(setup_env, "setup_hash", lambda _python, _ros: "another")
    assert installs("--for", "demo") == ["everything"]  # never half of it at the old pins
    setup_env.STAMP.write_text("a stamp's hash of before there were two sets")
    assert installs("--for", "demo") == ["everything"]


def test_sets_of_packages_are_extras_of_the_package_and_the_larger_holds_the_smaller(setup_env):
    demo, everything = (set(names.split(",")) for names in setup_env.EXTRAS.values())
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert demo < everything
    assert all(f'"{name}": [' in source for name in everything)


def test_make_test_and_lint_install_their_tools_and_make_demo_does_not():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    assert {"test: setup", "lint: setup", "demo: demo-setup"} <= set(rules)

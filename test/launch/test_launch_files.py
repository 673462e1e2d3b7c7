# SPDX-License-Identifier: Apache-2.0
"""Launch files: Nav2's arguments, and with the real launch package the processes they start."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAV2_ARGUMENTS = {
    "namespace",
    "use_sim_time",
    "params_file",
    "autostart",
    "use_respawn",
    "log_level",
}
OWN_ARGUMENTS = {"image_topic", "odom_topic", "cmd_vel_topic", "model_path", "device", "execute"}


def load(name):
    pytest.importorskip("launch_ros", reason="ROS's launch is not in pip's wheels; source a ROS 2")
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def literal_arguments(name):
    """Names in the ARGUMENTS and PARAMETERS tables, read without ROS."""
    source = (ROOT / "launch" / f"{name}.launch.py").read_text(encoding="utf-8")
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("ARGUMENTS", "PARAMETERS"):
            names |= {row.elts[0].value for row in node.value.elts}
    return names


def test_navigate_takes_the_arguments_of_nav2_and_ours():
    assert literal_arguments("navigate") >= NAV2_ARGUMENTS | OWN_ARGUMENTS


def test_simulation_adds_the_seed():
    assert "seed" in literal_arguments("simulation")


def test_only_executables_that_exist_are_started():
    names = set()
    for path in (ROOT / "launch").glob("*.launch.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "own_node":
                names.add(node.args[0].value)
    assert names == {"navigator", "dashboard", "simulator", "habitat", "recorder"}
    for name in names:
        assert (ROOT / "libexec" / f"{name}_node").is_file()


@pytest.mark.parametrize(
    "name, start, packages",
    [
        ("simulation", "start_simulator", ["nvila_ros"]),
        ("habitat", "start_habitat", ["nvila_ros"]),
        ("gazebo", "start_gazebo", ["ros_gz_sim", "ros_gz_bridge"]),
        (
            "nav2",
            "start_nav2",
            ["nav2_velocity_smoother", "nav2_collision_monitor", "nav2_lifecycle_manager"],
        ),
    ],
)
def test_worlds_start_their_nodes_and_the_navigator(name, start, packages):
    module, navigate = load(name), load("navigate")
    from launch import LaunchContext
    from launch_ros.actions import Node

    names = {
        argument.name for argument in module.generate_launch_description().get_launch_arguments()
    }
    assert names >= NAV2_ARGUMENTS | OWN_ARGUMENTS
    context = LaunchContext()
    tables = (module.ARGUMENTS, navigate.ARGUMENTS, navigate.PARAMETERS)
    context.launch_configurations.update(
        {row: default for table in tables for row, default, _ in table}
    )
    nodes = [action for action in getattr(module, start)(context) if isinstance(action, Node)]
    assert [node.node_package for node in nodes] == packages


def test_simulation_shows_its_arguments_and_those_it_includes():
    description = load("simulation").generate_launch_description()
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names >= {"seed", *NAV2_ARGUMENTS, *OWN_ARGUMENTS}


def test_given_arguments_become_parameters_and_others_stay_the_files():
    module = load("navigate")
    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update(
        {name: default for name, default, _ in (*module.ARGUMENTS, *module.PARAMETERS)},
        execute="false",
        model_path="~/weights",
    )
    (node,) = module.start(context)
    node._perform_substitutions(context)
    files = [path for path, is_file in node._Node__expanded_parameter_arguments if is_file]
    assert Path(files[0]).name == "navigator.yaml"
    written = yaml.safe_load(Path(files[1]).read_text(encoding="utf-8"))
    (parameters,) = (entry["ros__parameters"] for entry in written.values())
    assert parameters == {
        "execute": False,
        "model_path": str(Path("~/weights").expanduser()),
        "use_sim_time": False,
        "autostart": True,
    }


@pytest.mark.parametrize("wanted, executables", [("false", 1), ("true", 2)])
def test_the_dashboard_is_started_where_it_is_wanted(wanted, executables):
    module = load("navigate")
    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update(
        {name: default for name, default, _ in (*module.ARGUMENTS, *module.PARAMETERS)},
        dashboard=wanted,
    )
    nodes = module.start(context)
    assert len(nodes) == executables
    assert {"dashboard", "dashboard_port"} <= literal_arguments("navigate")

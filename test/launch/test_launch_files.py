# SPDX-License-Identifier: Apache-2.0
"""Launch files: Nav2's arguments, and with the real launch package the processes they start."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

from nvila_ros.errors import ConfigError

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


def context_of(*tables, **given):
    """Every argument's default, and what was given."""
    from launch import LaunchContext

    context = LaunchContext()
    defaults = {name: default for table in tables for name, default, _ in table}
    context.launch_configurations.update(defaults | given)
    return context


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
    from launch_ros.actions import Node

    names = {
        argument.name for argument in module.generate_launch_description().get_launch_arguments()
    }
    assert names >= NAV2_ARGUMENTS | OWN_ARGUMENTS
    context = context_of(module.ARGUMENTS, navigate.ARGUMENTS, navigate.PARAMETERS)
    nodes = [action for action in getattr(module, start)(context) if isinstance(action, Node)]
    assert [node.node_package for node in nodes] == packages


def test_simulation_shows_its_arguments_and_those_it_includes():
    description = load("simulation").generate_launch_description()
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names >= {"seed", *NAV2_ARGUMENTS, *OWN_ARGUMENTS}


def test_given_arguments_become_parameters_and_others_stay_the_files():
    module = load("navigate")
    context = context_of(
        module.ARGUMENTS, module.PARAMETERS, execute="false", model_path="~/weights"
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


def test_no_launch_file_reads_booleans_by_itself():
    """Nav2's and Gazebo's took 'yes' and '1' for false, where the navigator took them for true."""
    for path in (ROOT / "launch").glob("*.launch.py"):
        source = path.read_text(encoding="utf-8")
        assert "safe_load" not in source and ".lower()" not in source, path.name


@pytest.mark.parametrize(
    "text, value", [("true", True), ("Yes", True), ("1", True), ("False", False), ("off", False)]
)
def test_every_spelling_of_a_boolean_is_one(text, value):
    ros_launch = pytest.importorskip("nvila_ros.ros_launch", exc_type=ImportError)
    given = {"enable_stamped_cmd_vel": text}.__getitem__
    assert ros_launch.given_bool(given, "enable_stamped_cmd_vel") is value
    assert ros_launch.given_stamped(given) == {"enable_stamped_cmd_vel": value}
    assert ros_launch.given_stamped({"enable_stamped_cmd_vel": ""}.__getitem__) == {}


def test_what_is_no_boolean_is_refused_with_what_to_write():
    ros_launch = pytest.importorskip("nvila_ros.ros_launch", exc_type=ImportError)
    with pytest.raises(ConfigError, match=r"execute:=flase.*execute:=true"):
        ros_launch.given_bool({"execute": "flase"}.__getitem__, "execute")


@pytest.mark.parametrize("name, start", [("simulation", "start_simulator"), ("nav2", "start_nav2")])
def test_both_ends_of_cmd_vel_are_told_its_type(name, start):
    module, navigate = load(name), load("navigate")
    context = context_of(
        *(module.ARGUMENTS, navigate.ARGUMENTS, navigate.PARAMETERS),
        enable_stamped_cmd_vel="No",
        use_sim_time="yes",
    )
    for node in getattr(module, start)(context):
        node._perform_substitutions(context)
        files = [path for path, is_file in node._Node__expanded_parameter_arguments if is_file]
        written = yaml.safe_load(Path(files[1]).read_text(encoding="utf-8"))
        (parameters,) = (entry["ros__parameters"] for entry in written.values())
        assert parameters["enable_stamped_cmd_vel"] is False
        assert parameters.get("use_sim_time", True) is True


def test_the_recorders_arguments_have_their_types():
    module = load("record")
    context = context_of(
        *(module.ARGUMENTS, module.PARAMETERS),
        scan="true",
        jpeg_quality="80",
        max_image_rate_hz="5",
        instruction="12",
    )
    (node,) = module.start(context)
    node._perform_substitutions(context)
    (path,) = (path for path, is_file in node._Node__expanded_parameter_arguments if is_file)
    (entry,) = yaml.safe_load(Path(path).read_text(encoding="utf-8")).values()
    given = {"scan": True, "jpeg_quality": 80, "max_image_rate_hz": 5.0, "instruction": "12"}
    assert entry["ros__parameters"] == given


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

# SPDX-License-Identifier: Apache-2.0
"""Gazebo's and Nav2's files, parsed without Gazebo and Nav2: geometry, names and chains fit."""

import ast
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from nvila_ros.navigator_config import NavigatorConfig

ROOT = Path(__file__).resolve().parents[2]
GAZEBO = ROOT / "config" / "gazebo"
SETTINGS = NavigatorConfig()


def parse(name):
    return ElementTree.parse(GAZEBO / name).getroot()


def numbers(element):
    return [float(word) for word in element.text.split()]


ROBOT, WORLD = parse("robot.sdf").find("model"), parse("apartment.sdf").find("world")
BRIDGE = yaml.safe_load((GAZEBO / "bridge.yaml").read_text(encoding="utf-8"))
NAV2 = yaml.safe_load((ROOT / "config" / "nav2.yaml").read_text(encoding="utf-8"))


def test_the_camera_is_the_one_the_model_knows():
    sensor = ROBOT.find("link[@name='base_link']/sensor[@name='camera']")
    height_m = numbers(ROBOT.find("link[@name='base_link']/pose"))[2]
    pose = numbers(sensor.find("pose"))
    assert height_m + pose[2] == pytest.approx(1.10) and pose[3:] == [0, 0, 0]
    assert float(sensor.find("camera/horizontal_fov").text) == pytest.approx(math.pi / 2, abs=1e-4)
    assert sensor.find("gz_frame_id").text == "camera_optical_frame"


def test_the_wheels_stand_on_the_floor_and_fit_the_drive():
    drive = ROBOT.find("plugin[@name='gz::sim::systems::DiffDrive']")
    radius_m = float(drive.find("wheel_radius").text)
    sides = []
    for side in ("left", "right"):
        link = ROBOT.find(f"link[@name='{side}_wheel']")
        x_m, y_m, z_m, roll_rad, *_ = numbers(link.find("pose"))
        assert (
            x_m == 0.0 and z_m == radius_m and abs(roll_rad) == pytest.approx(math.pi / 2, abs=1e-3)
        )
        assert float(link.find("collision/geometry/cylinder/radius").text) == radius_m
        assert drive.find(f"{side}_joint").text == f"{side}_wheel_joint"
        assert ROBOT.find(f"joint[@name='{side}_wheel_joint']/child").text == f"{side}_wheel"
        sides.append(y_m)
    assert sides[0] - sides[1] == pytest.approx(float(drive.find("wheel_separation").text))
    # The wheels turn about +y: their axis is the link's z after the roll.
    assert numbers(ROBOT.find("joint/axis/xyz")) == [0, 0, 1] and roll_rad < 0


def test_casters_touch_the_floor_and_the_body_does_not():
    base_m = numbers(ROBOT.find("link[@name='base_link']/pose"))[2]
    for name in ("front_caster", "back_caster"):
        caster = ROBOT.find(f"link/collision[@name='{name}']")
        bottom = base_m + numbers(caster.find("pose"))[2]
        assert bottom == pytest.approx(float(caster.find("geometry/sphere/radius").text), abs=1e-6)
    body = ROBOT.find("link/collision[@name='body']/geometry/cylinder")
    assert base_m - float(body.find("length").text) / 2 > 0.02
    assert float(body.find("radius").text) == SETTINGS.safety.robot_radius_m


def test_inertias_are_those_of_real_bodies():
    for inertial in ROBOT.iter("inertial"):
        ixx, iyy, izz = (
            float(inertial.find(f"inertia/{name}").text) for name in ("ixx", "iyy", "izz")
        )
        assert float(inertial.find("mass").text) > 0 and min(ixx, iyy, izz) > 0
        assert ixx + iyy >= izz and iyy + izz >= ixx and izz + ixx >= iyy


def test_the_world_has_the_systems_and_the_apartment():
    systems = {plugin.get("name").rsplit("::", 1)[-1] for plugin in WORLD.iter("plugin")}
    assert systems == {"Physics", "UserCommands", "SceneBroadcaster", "Sensors"}
    link = WORLD.find("model[@name='apartment']/link")
    names = [element.get("name") for element in link]
    assert len(names) == len(set(names))
    assert len(link.findall("visual")) > 200 and len(link.findall("collision")) > 30
    assert all(len(numbers(pose)) == 6 for pose in link.iter("pose"))
    assert all(min(numbers(size)) > 0 for size in link.iter("size"))


def test_the_world_is_the_embedded_apartment():
    pytest.importorskip("mujoco")
    from nvila_ros.sim.episodes import episode_from_seed
    from nvila_ros.sim.geometry import obstacles

    episode = episode_from_seed(900_000)
    boxes = WORLD.findall("model/link/collision")[1:]
    things = obstacles(episode.scene)
    assert len(boxes) == len(things)
    for box, thing in zip(boxes, things, strict=True):
        x_m, y_m, *_, yaw_rad = numbers(box.find("pose"))
        assert (x_m, y_m, yaw_rad) == pytest.approx((thing.x_m, thing.y_m, thing.yaw_rad), abs=1e-4)
    source = (ROOT / "launch" / "gazebo.launch.py").read_text(encoding="utf-8")
    rows = {row[0]: row[1] for row in literal_rows(source) if row[0] in ("x_m", "y_m", "yaw_rad")}
    start = [float(rows[name]) for name in ("x_m", "y_m", "yaw_rad")]
    assert start == pytest.approx(episode.start, abs=1e-2)


def literal_rows(source):
    """(name, default) of the argument table, where the default is a literal."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ARGUMENTS":
            for row in node.value.elts:
                if isinstance(row.elts[1], ast.Constant):
                    yield row.elts[0].value, row.elts[1].value


def test_the_bridge_carries_what_the_robot_has_and_the_navigator_wants():
    rows = {row["ros_topic_name"]: row for row in BRIDGE}
    assert set(rows) >= {"/clock", "image", "odom", "scan", "cmd_vel"}
    assert rows["cmd_vel"]["direction"] == "ROS_TO_GZ"
    assert rows["cmd_vel"]["ros_type_name"] == "geometry_msgs/msg/TwistStamped"
    named = {element.text for element in ROBOT.iter() if element.tag.endswith("topic")}
    for row in BRIDGE:
        assert row["gz_topic_name"] == "/clock" or row["gz_topic_name"] in named
        assert set(row) == {
            "ros_topic_name",
            "gz_topic_name",
            "ros_type_name",
            "gz_type_name",
            "direction",
        }


def parameters(node):
    return NAV2[f"/**/{node}"]["ros__parameters"]


def test_nav2_lets_the_navigator_drive_and_stops_what_it_must():
    smoother, monitor = parameters("velocity_smoother"), parameters("collision_monitor")
    motion, safety = SETTINGS.motion, SETTINGS.safety
    assert smoother["max_velocity"][0] >= motion.max_forward_m_s
    assert smoother["max_velocity"][2] >= motion.max_turn_rad_s
    assert smoother["max_accel"][0] >= motion.acceleration_m_s2
    assert -smoother["max_decel"][2] >= motion.turn_acceleration_rad_s2
    assert smoother["smoothing_frequency"] == SETTINGS.control_rate_hz
    assert monitor["cmd_vel_in_topic"] == "cmd_vel_smoothed"
    assert monitor["PolygonStop"]["radius"] > safety.robot_radius_m
    assert monitor["state_topic"] == "collision_monitor_state"
    assert all(name in monitor for name in monitor["polygons"] + monitor["observation_sources"])
    assert "navigator" in parameters("lifecycle_manager")["node_names"]

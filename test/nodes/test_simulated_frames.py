# SPDX-License-Identifier: Apache-2.0
"""The simulator's frames: tf2_msgs is in no wheel, so its message is a stand-in here."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from nav_msgs.msg import Odometry

from nvila_ros.nodes.simulated_frames import SimulatedFrames


class StandInNode:
    """Keeps what is published on each topic."""

    def __init__(self):
        self.said = {}

    def create_publisher(self, _kind, topic, _qos):
        return SimpleNamespace(publish=self.said.setdefault(topic, []).append)


@pytest.fixture
def with_tf(monkeypatch):
    package, messages = ModuleType("tf2_msgs"), ModuleType("tf2_msgs.msg")
    messages.TFMessage = lambda transforms: SimpleNamespace(transforms=transforms)
    monkeypatch.setitem(sys.modules, "tf2_msgs", package)
    monkeypatch.setitem(sys.modules, "tf2_msgs.msg", messages)


def odometry(x_m, y_m, yaw_rad):
    message = Odometry(child_frame_id="a/base_link")
    message.header.frame_id, message.header.stamp.sec = "a/odom", 7
    message.pose.pose.position.x, message.pose.pose.position.y = x_m, y_m
    message.pose.pose.orientation.z = math.sin(yaw_rad / 2)
    message.pose.pose.orientation.w = math.cos(yaw_rad / 2)
    return message


def rotated(rotation, vector):
    """A vector of the child frame in the parent's axes."""
    x, y, z, w = rotation.x, rotation.y, rotation.z, rotation.w
    a, b, c = vector
    return (
        (1 - 2 * (y * y + z * z)) * a + 2 * (x * y - z * w) * b + 2 * (x * z + y * w) * c,
        2 * (x * y + z * w) * a + (1 - 2 * (x * x + z * z)) * b + 2 * (y * z - x * w) * c,
        2 * (x * z - y * w) * a + 2 * (y * z + x * w) * b + (1 - 2 * (x * x + y * y)) * c,
    )


def test_the_robot_is_where_odometry_has_it(with_tf):
    node = StandInNode()
    frames = SimulatedFrames(node, "a/", (0.05, 1.18))
    frames.publish(odometry(1.0, 2.0, math.pi / 2))
    (transform,) = node.said["/tf"][0].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("a/odom", "a/base_link")
    assert transform.header.stamp.sec == 7
    place = transform.transform
    assert (place.translation.x, place.translation.y) == (1.0, 2.0)
    assert rotated(place.rotation, (1, 0, 0)) == pytest.approx((0, 1, 0), abs=1e-9)


def test_the_camera_looks_ahead_from_its_height(with_tf):
    """Optical axes: z is ahead (base x), x is right (base -y), y is down (base -z)."""
    node = StandInNode()
    SimulatedFrames(node, "", (0.05, 1.18))
    (message,) = node.said["/tf_static"]
    camera, lidar = message.transforms
    assert [t.child_frame_id for t in message.transforms] == ["camera_optical_frame", "lidar"]
    assert {t.header.frame_id for t in message.transforms} == {"base_link"}
    assert camera.transform.translation.z == 1.18
    rotation = camera.transform.rotation
    assert rotated(rotation, (0, 0, 1)) == pytest.approx((1, 0, 0))
    assert rotated(rotation, (1, 0, 0)) == pytest.approx((0, -1, 0))
    assert rotated(rotation, (0, 1, 0)) == pytest.approx((0, 0, -1))
    assert rotated(lidar.transform.rotation, (1, 0, 0)) == (1, 0, 0)


def test_without_tf2_msgs_nothing_is_published(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2_msgs", None)
    node = StandInNode()
    SimulatedFrames(node, "", (0.05, 1.18)).publish(odometry(0.0, 0.0, 0.0))
    assert node.said == {}

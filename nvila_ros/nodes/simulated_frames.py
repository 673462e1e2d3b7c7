# SPDX-License-Identifier: Apache-2.0
"""The simulated robot's frames on /tf and /tf_static, for RViz and Nav2; ours need neither.

tf2_msgs comes with ROS installations and not with pip's wheels: without it nothing is published.
"""

from __future__ import annotations

from typing import Any

from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile

from nvila_ros.ros_main import STATE_QOS

TF_QOS = QoSProfile(depth=100)  # tf2_ros' own
# Optical axes (z ahead, x right, y down) of a level camera that looks ahead: REP-103.
LEVEL_OPTICAL_XYZW = (-0.5, 0.5, -0.5, 0.5)


class SimulatedFrames:
    """odom -> base_link with every odometry message; where camera and lidar are, once."""

    def __init__(self, node: Node, prefix: str, camera_m: tuple[float, float]) -> None:
        """`camera_m`: how far ahead of and above base_link the camera is."""
        self._moving = self._fixed = None
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            return
        self._message = TFMessage
        self._moving = node.create_publisher(TFMessage, "/tf", TF_QOS)
        self._fixed = node.create_publisher(TFMessage, "/tf_static", STATE_QOS)
        ahead_m, above_m = camera_m
        camera = _transform(f"{prefix}base_link", f"{prefix}camera_optical_frame")
        camera.transform.translation.x, camera.transform.translation.z = ahead_m, above_m
        rotation = camera.transform.rotation
        rotation.x, rotation.y, rotation.z, rotation.w = LEVEL_OPTICAL_XYZW
        lidar = _transform(f"{prefix}base_link", f"{prefix}lidar")
        self._fixed.publish(TFMessage(transforms=[camera, lidar]))

    def publish(self, odometry: Odometry) -> None:
        """Where the robot is, as odometry has it."""
        if self._moving is None:
            return
        transform = _transform(odometry.header.frame_id, odometry.child_frame_id)
        transform.header.stamp = odometry.header.stamp
        pose, place = odometry.pose.pose, transform.transform
        place.translation.x, place.translation.y = pose.position.x, pose.position.y
        place.rotation = pose.orientation
        self._moving.publish(self._message(transforms=[transform]))


def _transform(parent: str, child: str) -> Any:
    made = TransformStamped(child_frame_id=child)
    made.header.frame_id = parent
    return made

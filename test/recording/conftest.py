# SPDX-License-Identifier: Apache-2.0
"""Small bags without ROS: a robot that drives by a list of unit motions, and says so."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcap_ros2", reason="the extra `record` is not installed")

HEADER = """std_msgs/Header header
"""
PARTS = (
    "\n" + "=" * 80 + "\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
    + "=" * 80 + "\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
)  # fmt: skip
COMPRESSED = HEADER + "string format\nuint8[] data\n" + PARTS
ODOMETRY = (
    HEADER + "string child_frame_id\nPoseWithCovariance pose\n" + PARTS
    + "=" * 80 + "\nMSG: nav_msgs/PoseWithCovariance\nPose pose\nfloat64[36] covariance\n"
    + "=" * 80 + "\nMSG: nav_msgs/Pose\nPoint position\nQuaternion orientation\n"
    + "=" * 80 + "\nMSG: nav_msgs/Point\nfloat64 x\nfloat64 y\nfloat64 z\n"
    + "=" * 80 + "\nMSG: nav_msgs/Quaternion\nfloat64 x\nfloat64 y\nfloat64 z\nfloat64 w\n"
)  # fmt: skip
STEPS = 5  # per unit motion of half a second
PERIOD_S = 0.1


class Bag:
    """Writes what a robot at a pose sees and says, 0.1 s at a time."""

    def __init__(self, path, chunk_size=2048):
        from mcap_ros2.writer import Writer

        self.path, self.file = path, path.open("wb")
        self.writer = Writer(self.file, chunk_size=chunk_size)
        define = self.writer.register_msgdef
        self.kinds = {
            "image": define("sensor_msgs/msg/CompressedImage", COMPRESSED),
            "odom": define("nav_msgs/msg/Odometry", ODOMETRY),
            "text": define("std_msgs/msg/String", "string data\n"),
        }
        self.now_s, self.pose, self.num_decisions = 100.0, [0.0, 0.0, 0.0], 0

    def _write(self, topic, kind, message):
        log_ns = round(self.now_s * 1e9)
        self.writer.write_message(topic, self.kinds[kind], message, log_ns, log_ns)

    def _header(self):
        second = math.floor(self.now_s)
        nanosecond = round((self.now_s - second) * 1e9)
        return {"stamp": {"sec": second, "nanosec": nanosecond}, "frame_id": "odom"}

    def say(self, text, topic="/instruction"):
        self._write(topic, "text", {"data": text})
        self.now_s += 0.01

    def decide(self, index):
        self.num_decisions += 1
        row = {"episode": 1, "step": self.num_decisions, "index": index, "confidence": 0.9}
        row |= {"probabilities": [0.1] * 10, "stamp_s": self.image_s}
        self.say(json.dumps(row), "/navigator/decision")

    def end(self, result="SUCCEEDED"):
        self.say(json.dumps({"state": "idle", "result": result}), "/navigator/state")

    def look(self):
        """Odometry, then a picture whose shade says where the robot is."""
        x_m, y_m, yaw_rad = self.pose
        orientation = {"x": 0.0, "y": 0.0, "z": math.sin(yaw_rad / 2), "w": math.cos(yaw_rad / 2)}
        pose = {"position": {"x": x_m, "y": y_m, "z": 0.0}, "orientation": orientation}
        message = {"header": self._header(), "child_frame_id": "base_link"}
        message["pose"] = {"pose": pose, "covariance": [0.0] * 36}
        self._write("/odom", "odom", message)
        rgb = np.full((16, 16, 3), min(250, round(100 * math.hypot(x_m, y_m))), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG")
        self.image_s = self.now_s
        data = {"header": self._header(), "format": "jpeg", "data": buffer.getvalue()}
        self._write("/image/compressed", "image", data)
        self.now_s += PERIOD_S

    def rest(self, seconds=1.0):
        for _ in range(round(seconds / PERIOD_S)):
            self.look()

    def drive(self, forward_m=0.0, turn_deg=0.0, steps=STEPS):
        """One motion; both at once is an arc."""
        for _ in range(steps):
            self.pose[2] += math.radians(turn_deg) / steps
            self.pose[0] += forward_m / steps * math.cos(self.pose[2])
            self.pose[1] += forward_m / steps * math.sin(self.pose[2])
            self.look()

    def close(self):
        self.writer.finish()
        self.file.close()
        return self.path


@pytest.fixture
def bag(tmp_path):
    made = Bag(tmp_path / "drive.mcap")
    yield made
    made.file.close()


@pytest.fixture
def model_drive(bag):
    """Left 30 degrees, forward 75 cm, right 15 degrees, stop; decided and driven."""
    bag.rest(0.3)
    bag.say("Go to the sofa.")
    bag.rest(0.2)
    for index, motions in ((5, [(0, 15)] * 2), (3, [(0.25, 0)] * 3), (7, [(0, -15)]), (0, [])):
        bag.decide(index)
        for forward_m, turn_deg in motions:
            bag.drive(forward_m, turn_deg)
        bag.rest(0.2)
    bag.end()
    return bag.close()

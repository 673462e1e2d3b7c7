# SPDX-License-Identifier: Apache-2.0
"""An exported tower that cannot be used: the navigator drives with its own and says so."""

import shutil

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")
pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from stand_ins import wait_for

from nvila_ros.models.engine_file import FOLDER
from nvila_ros.ros_main import EVENT_QOS

pytestmark = pytest.mark.ros


def test_a_broken_graph_is_a_warning_in_the_diagnostics(ros, robot, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "vision_fp32.onnx").write_bytes(b"half a graph")
    messages = []
    robot.node.create_subscription(DiagnosticArray, "/diagnostics", messages.append, EVENT_QOS)
    ros.navigator(model_path=str(folder), min_confidence=0.0)
    robot.wait_for_state("idle")
    robot.instruct("Go through the door.")
    robot.wait_until_moving()

    def warned():
        rows = [status for array in messages for status in array.status]
        return any(
            row.level == DiagnosticStatus.WARN and "onnxruntime is not used" in row.message
            for row in rows
        )

    wait_for(warned, "a warning on /diagnostics")
    (text,) = {
        row.message
        for array in messages
        for row in array.status
        if "onnxruntime is not used" in row.message
    }
    assert "nvila export" in text and "--precision fp32" in text

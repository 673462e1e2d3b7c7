# SPDX-License-Identifier: Apache-2.0
"""The recorder on a real DDS: what a robot says is in the file, also when it is killed."""

import json

import pytest

pytest.importorskip("mcap", reason="the extra `record` is not installed")

from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage
from stand_ins import DrivingPolicy, wait_for
from std_msgs.msg import String

from nvila_ros.errors import DataError
from nvila_ros.nodes.recorder_node import RecorderNode, message_class
from nvila_ros.recording.bag_episodes import cut_episodes
from nvila_ros.recording.bag_reader import BagTopics, read_recording
from nvila_ros.recording.bag_writer import message_definition, share_folders
from nvila_ros.ros_main import EVENT_QOS, SENSOR_QOS

pytestmark = pytest.mark.ros


def recorder(ros, path, **parameters):
    options = {"context": ros.context, "namespace": ros.namespace}
    overrides = [
        Parameter(key, value=value) for key, value in ({"output": str(path)} | parameters).items()
    ]
    return ros.add(RecorderNode(parameter_overrides=overrides, **options))


def count(node, ending):
    return sum(n for topic, n in node.writer.num_messages.items() if topic.endswith(ending))


def test_a_drive_is_in_the_file(ros, robot, tmp_path):
    node = recorder(ros, tmp_path / "drive.mcap")
    ros.navigator(DrivingPolicy())
    wait_for(lambda: robot.state.get("state") == "idle", "the navigator is ready")
    wait_for(lambda: count(node, "image/compressed") and count(node, "odom"), "sensors are heard")
    robot.instruct("Go on.")
    wait_for(lambda: count(node, "decision") > 1, "decisions are heard")
    node.shut_down()
    recording = read_recording(tmp_path / "drive.mcap")
    assert recording.num_images > 0 and not recording.cut
    assert next(iter(recording.pictures())).rgb().ndim == 3
    (episode,) = cut_episodes(recording)
    assert episode.instruction == "Go on."
    assert [said.row["index"] for said in episode.decisions][:2] == [3, 3]
    assert count(node, "cmd_vel") and count(node, "navigator/state")
    assert json.loads(recording.states[0].text)["state"]


def test_a_killed_recorder_leaves_what_it_wrote(ros, robot, tmp_path):
    node = recorder(ros, tmp_path / "drive.mcap")
    wait_for(lambda: node.path.stat().st_size > 300_000, "more than a chunk is written")
    copy = tmp_path / "killed.mcap"  # as the disk has it: no index, no summary
    copy.write_bytes(node.path.read_bytes())
    recording = read_recording(copy)
    assert recording.cut and recording.num_images > 0
    assert recording.num_images <= count(node, "image/compressed")


def test_a_compressed_camera_is_taken_as_it_is(ros, tmp_path):
    node = recorder(ros, tmp_path / "drive.mcap", instruction="Go.", max_image_rate_hz=5.0)
    camera = ros.node("camera")
    publisher = camera.create_publisher(CompressedImage, "image/compressed", SENSOR_QOS)
    message = CompressedImage(format="jpeg", data=b"\xff\xd8 not decoded")
    camera.create_timer(0.02, lambda: publisher.publish(message))
    wait_for(lambda: count(node, "image/compressed") >= 3, "pictures are heard")
    assert count(node, "instruction") == 1
    node.shut_down()
    topic = f"/{ros.namespace}/image/compressed"
    with pytest.raises(DataError, match="odometry"):
        read_recording(node.path, BagTopics(image=topic))


def test_more_topics_are_recorded_on_demand(ros, tmp_path):
    node = recorder(ros, tmp_path / "drive.mcap", extra_topics="words, other")
    speaker = ros.node("speaker")
    publisher = speaker.create_publisher(String, "words", EVENT_QOS)
    speaker.create_timer(0.05, lambda: publisher.publish(String(data="word")))
    wait_for(lambda: count(node, "words") > 1, "words are heard")


def test_recordings_are_not_overwritten(ros, tmp_path):
    (tmp_path / "drive.mcap").write_bytes(b"precious")
    with pytest.raises(DataError, match="not overwritten"):
        recorder(ros, tmp_path / "drive.mcap")
    assert (tmp_path / "drive.mcap").read_bytes() == b"precious"


def test_definitions_hold_all_that_they_are_made_of():
    text = message_definition("nav_msgs/msg/Odometry", share_folders())
    for part in ("std_msgs/Header", "geometry_msgs/PoseWithCovariance", "builtin_interfaces/Time"):
        assert f"MSG: {part}\n" in text
    with pytest.raises(DataError, match="absent_msgs"):
        message_definition("absent_msgs/msg/Word", share_folders())
    assert message_class("absent_msgs/msg/Word") is None

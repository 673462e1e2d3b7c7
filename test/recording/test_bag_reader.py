# SPDX-License-Identifier: Apache-2.0
"""Reading bags: whole, cut, foreign and empty ones; episodes of what was said."""

import math

import pytest

from nvila_ros.errors import DataError
from nvila_ros.recording.bag_episodes import cut_episodes
from nvila_ros.recording.bag_reader import BagTopics, mcap_file, read_recording


def test_a_whole_bag_is_read(model_drive):
    recording = read_recording(model_drive)
    assert recording.topics == {
        "image": "/image/compressed",
        "odometry": "/odom",
        "instruction": "/instruction",
        "decision": "/navigator/decision",
        "state": "/navigator/state",
    }
    assert recording.num_images == len(recording.poses) == len(list(recording.pictures()))
    assert not recording.cut and len(recording.decisions) == 4
    x_m, y_m, yaw_rad = recording.pose_at(1e9)
    assert (x_m, y_m) == pytest.approx((0.75 * math.cos(math.pi / 6), 0.375), abs=1e-6)
    assert yaw_rad == pytest.approx(math.radians(15))
    picture = next(iter(recording.pictures()))
    assert picture.rgb().shape == (16, 16, 3)


def test_a_turn_through_the_back_is_not_interpolated_the_wrong_way(bag):
    bag.pose[2] = math.radians(170)
    bag.look()
    bag.pose[2] = math.radians(-170)
    bag.look()
    recording = read_recording(bag.close())
    middle = recording.pose_at(sum(recording.poses[:, 1]) / 2)[2]
    assert math.cos(middle) == pytest.approx(-1.0)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_what_comes_before_the_cut_is_used(model_drive, tmp_path, share, caplog):
    content = model_drive.read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(content[: int(share * len(content))])
    recording = read_recording(cut)
    assert recording.cut and "cut short" in caplog.text
    whole = read_recording(model_drive)
    assert 0 < recording.num_images <= whole.num_images
    assert len(list(recording.pictures())) == recording.num_images


def test_any_cut_is_an_answer_or_an_error_of_ours(model_drive, tmp_path):
    content = model_drive.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        cut = tmp_path / "cut.mcap"
        cut.write_bytes(content[:length])
        try:
            read_recording(cut)
        except DataError as error:
            assert str(cut) in str(error)


def test_damage_in_the_middle_keeps_what_comes_before(model_drive, tmp_path):
    content = bytearray(model_drive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(content)
    recording = read_recording(broken)
    assert recording.cut and recording.num_images > 0


def test_a_bag_without_our_topics_says_what_it_holds(bag):
    bag.say("hello", "/chatter")
    path = bag.close()
    with pytest.raises(DataError, match=r"no topic with images; it holds /chatter"):
        read_recording(path)


def test_a_topic_that_was_named_must_be_there(model_drive):
    with pytest.raises(DataError, match="no topic /camera; it holds"):
        read_recording(model_drive, BagTopics(image="/camera"))


def test_what_is_no_bag_is_named(tmp_path):
    with pytest.raises(DataError, match=r"does not exist; give an \.mcap file, or the fold"):
        mcap_file(tmp_path / "absent.mcap")
    with pytest.raises(DataError, match=r"no \.mcap file"):
        mcap_file(tmp_path)
    (tmp_path / "x.db3").touch()
    with pytest.raises(DataError, match="ros2 bag convert"):
        mcap_file(tmp_path)
    text = tmp_path / "text.mcap"
    text.write_text("not a bag, but long enough to be one")
    with pytest.raises(DataError, match="no MCAP file"):
        read_recording(text)


def test_a_rosbag2_folder_is_its_file(model_drive, tmp_path):
    folder = tmp_path / "bag"
    folder.mkdir()
    model_drive.rename(folder / "bag_0.mcap")
    assert read_recording(folder).num_images > 0


def test_episodes_end_with_their_result(bag):
    for text, result in (("First.", "SUCCEEDED"), ("Second.", "LOST")):
        bag.say(text)
        bag.rest(0.2)
        bag.decide(3)
        bag.drive(0.25)
        bag.end(result)
        bag.rest(0.5)
    recording = read_recording(bag.close())
    first, second = cut_episodes(recording)
    assert (first.instruction, first.result) == ("First.", "SUCCEEDED")
    assert (second.instruction, second.result) == ("Second.", "LOST")
    assert [len(episode.decisions) for episode in (first, second)] == [1, 1]
    assert first.end_s < second.begin_s
    with pytest.raises(DataError, match="of its own"):
        cut_episodes(recording, "Another.")


def test_a_joystick_drive_needs_its_instruction(bag):
    bag.rest()
    recording = read_recording(bag.close())
    with pytest.raises(DataError, match="--instruction"):
        cut_episodes(recording)
    (episode,) = cut_episodes(recording, "Go.")
    assert episode.instruction == "Go." and episode.result is None

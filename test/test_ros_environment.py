# SPDX-License-Identifier: Apache-2.0
"""The environment of node processes: the shipped profile, and never over the user's own."""

from pathlib import Path

from nvila_ros.ros_environment import added_environment, process_environment, share_folder


def test_the_shipped_profile_is_set_under_both_names():
    added = added_environment({})
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        assert Path(added[name]).is_file()
    assert int(added["MALLOC_MMAP_THRESHOLD_"]) > 1 << 20


def test_a_profile_of_the_user_stays():
    own = {"FASTRTPS_DEFAULT_PROFILES_FILE": "mine.xml", "MALLOC_TRIM_THRESHOLD_": "1"}
    environment = process_environment(own)
    assert environment["FASTRTPS_DEFAULT_PROFILES_FILE"] == "mine.xml"
    assert "FASTDDS_DEFAULT_PROFILES_FILE" not in environment
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "1"


def test_share_folder_holds_launch_and_config():
    assert (share_folder() / "launch" / "navigate.launch.py").is_file()
    assert (share_folder() / "config" / "navigator.yaml").is_file()

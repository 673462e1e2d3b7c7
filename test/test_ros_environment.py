# SPDX-License-Identifier: Apache-2.0
"""The environment of node processes: the shipped profile, and never over the user's own."""

import os
import subprocess
import sys
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


def test_threads_that_wait_leave_the_cores_to_others_unless_told_otherwise():
    assert added_environment({})["OMP_WAIT_POLICY"] == "passive"
    assert process_environment({"OMP_WAIT_POLICY": "active"})["OMP_WAIT_POLICY"] == "active"


def test_the_command_line_says_so_before_torch_is_there():
    program = """
import os, sys
from nvila_ros import cli
assert "torch" not in sys.modules
sys.argv = ["nvila", "--version"]
try:
    cli.main()
except SystemExit:
    pass
print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "passive"

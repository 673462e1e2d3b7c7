# SPDX-License-Identifier: Apache-2.0
"""What processes that talk over ROS need in their environment; no ROS is imported here."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nvila_ros.errors import SystemLibraryError
from nvila_ros.patience import PATIENT_THREADS

# Fresh pages for every image cost 2 ms at 640x480: let malloc keep big blocks.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
# A robot that listens to the whole network is a risk; SUBNET opens it (Humble knows neither).
_DISCOVERY_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
_PROFILE_NAMES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


def require_rclpy() -> None:
    """SystemLibraryError, which says how to get it, where there is no rclpy."""
    if importlib.util.find_spec("rclpy") is None:
        raise SystemLibraryError(
            "rclpy, ROS 2's Python library, was not found; run `make setup` for pip's wheels, or "
            "source a ROS 2 installation: . /opt/ros/jazzy/setup.bash"
        )


def share_folder() -> Path:
    """The folder that holds `config/` and `launch/`: the repository, or share/nvila_ros."""
    repository = Path(__file__).resolve().parents[1]
    if (repository / "config" / "fastdds.xml").is_file():
        return repository
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))]
    for prefix in [*prefixes, sys.prefix, *(str(parent) for parent in Path(__file__).parents)]:
        share = Path(prefix) / "share" / "nvila_ros"
        if (share / "config" / "fastdds.xml").is_file():
            return share
    raise FileNotFoundError("share/nvila_ros was not found; install the package again")


def added_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What a node's process needs beyond `base`; nothing that the user has set is replaced.

    The Fast DDS profile makes room for images and finds peers quickly: with the default one best
    effort images above half a megabyte are lost and discovery takes up to three seconds. Peers are
    looked for on this machine alone. Threads of a model that wait leave the cores to others.
    """
    wanted = {**_MALLOC, **PATIENT_THREADS, _DISCOVERY_RANGE: "LOCALHOST"}
    if not any(name in base for name in _PROFILE_NAMES):
        wanted.update(dict.fromkeys(_PROFILE_NAMES, str(share_folder() / "config" / "fastdds.xml")))
    return {name: value for name, value in wanted.items() if name not in base}


def process_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment for a node's process, by default on top of this process's."""
    base = os.environ if base is None else base
    return {**base, **added_environment(base)}

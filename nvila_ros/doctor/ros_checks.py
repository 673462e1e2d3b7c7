# SPDX-License-Identifier: Apache-2.0
"""Checks of ROS 2: the installation, discovery, the camera's topic."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from nvila_ros.doctor.findings import (
    PROBE_TIMEOUT_S,
    DoctorSettings,
    Finding,
    Verdict,
    run_quietly,
)
from nvila_ros.ros_environment import process_environment


def check_ros(_settings: DoctorSettings) -> Finding:
    """rclpy and the messages, and where they come from."""
    distribution = os.environ.get("ROS_DISTRO", "")
    if importlib.util.find_spec("rclpy") is None:
        where = [str(path) for path in Path("/opt/ros").glob("*")]
        advice = f"source it: . {where[0]}/setup.bash" if where else "run `make setup`"
        return Finding("ROS 2", Verdict.BAD, "rclpy was not found", advice)
    packages = ("sensor_msgs", "nav_msgs", "geometry_msgs", "std_srvs", "diagnostic_msgs")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            "ROS 2",
            Verdict.BAD,
            f"missing: {', '.join(missing)}",
            f"apt-get install ros-{distribution or 'jazzy'}-common-interfaces, or `make setup`",
        )
    source = f"{distribution} (sourced)" if distribution else "pip's wheels"
    rmw = os.environ.get("RMW_IMPLEMENTATION", "the default middleware")
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    return Finding("ROS 2", Verdict.GOOD, f"{source}, {rmw}, domain {domain}")


def check_discovery(_settings: DoctorSettings) -> Finding:
    """Two processes of this machine find each other and exchange a message."""
    answer = _probe("discovery")
    if answer.get("heard"):
        return Finding(
            "discovery",
            Verdict.GOOD,
            f"two processes found each other in {answer['seconds']:.1f} s",
        )
    found = answer.get("error", f"nothing was heard within {answer.get('seconds', 0.0):.0f} s")
    return Finding(
        "discovery",
        Verdict.BAD,
        found,
        "bring the loopback up (ip link set lo up); unset ROS_AUTOMATIC_DISCOVERY_RANGE=OFF; let "
        "the firewall pass UDP 7400-7500 and multicast; same ROS_DOMAIN_ID on both sides",
    )


def check_camera(settings: DoctorSettings) -> Finding:
    """Images on the topic, and their rate."""
    topic = settings.image_topic
    answer = _probe("camera", topic, str(settings.camera_seconds))
    if "error" in answer:
        return Finding("camera", Verdict.LEFT_OUT, answer["error"])
    if answer["publishers"] == 0:
        others = ", ".join(answer["others"]) or "none"
        return Finding(
            "camera",
            Verdict.NOTE,
            f"nobody publishes {topic}; topics with images: {others}",
            "start the camera's driver, or name its topic: nvila doctor --image /camera/image_raw",
        )
    if answer["count"] < 2:
        return Finding(
            "camera",
            Verdict.BAD,
            f"{topic} is published, but {answer['count']} images came in "
            f"{settings.camera_seconds:g} s",
            "best effort images above 0.5 MB are lost with Fast DDS's defaults: export "
            f"FASTDDS_DEFAULT_PROFILES_FILE={answer['profile']} for the camera's driver too, or "
            "use image_transport:=compressed",
        )
    found = f"{answer['rate_hz']:.1f} Hz on {topic}, {answer['size']}"
    if answer["rate_hz"] < 2.0:
        return Finding(
            "camera", Verdict.NOTE, found, "below 2 Hz the robot waits for images; raise the rate"
        )
    return Finding("camera", Verdict.GOOD, found)


def _probe(*arguments: str) -> dict[str, Any]:
    """Asks ROS in processes of their own: a middleware that hangs does not hang the doctor."""
    command = [sys.executable, "-m", "nvila_ros.ros_probe", *arguments]
    answer = run_quietly(command, process_environment())
    if answer is None:
        return {"error": f"the middleware gave no answer within {PROBE_TIMEOUT_S:.0f} s"}
    lines = answer.stdout.strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"the probe ended with {answer.returncode}: {last[:200]}"}

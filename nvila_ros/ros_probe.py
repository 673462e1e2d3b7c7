# SPDX-License-Identifier: Apache-2.0
"""Small questions to ROS, each in a process of its own; one JSON line answers `nvila doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from nvila_ros.ros_environment import share_folder
from nvila_ros.ros_main import EVENT_QOS, SENSOR_QOS

DISCOVERY_TIMEOUT_S = 10.0
GRAPH_S = 3.0  # discovery of a camera's topic
PERIOD_S = 0.05
IMAGE_TYPES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}


def discovery() -> dict[str, Any]:
    """A second process says a word; how long it took to hear it."""
    rclpy.init()
    node = rclpy.create_node("doctor_listener")
    word = f"nvila_doctor_{os.getpid()}"
    heard: list[str] = []

    def on_word(message: String) -> None:
        heard.append(message.data)

    node.create_subscription(String, word, on_word, EVENT_QOS)
    begin_s = time.monotonic()
    speaker = subprocess.Popen([sys.executable, "-m", "nvila_ros.ros_probe", "say", word])
    try:
        while not heard and time.monotonic() - begin_s < DISCOVERY_TIMEOUT_S:
            rclpy.spin_once(node, timeout_sec=PERIOD_S)
    finally:
        speaker.terminate()
        speaker.wait(5.0)
    return {"heard": bool(heard), "seconds": time.monotonic() - begin_s}


def say(word: str) -> dict[str, Any]:
    """The second process: says the word until it is ended."""
    rclpy.init()
    node = rclpy.create_node("doctor_speaker")
    publisher = node.create_publisher(String, word, EVENT_QOS)
    end_s = time.monotonic() + DISCOVERY_TIMEOUT_S
    while time.monotonic() < end_s:
        publisher.publish(String(data=word))
        rclpy.spin_once(node, timeout_sec=PERIOD_S)
    return {}


def camera(topic: str, seconds: float) -> dict[str, Any]:
    """Who publishes the topic, and how many images come in."""
    rclpy.init()
    node = rclpy.create_node("doctor_camera")
    name = node.resolve_topic_name(topic)
    kind = _wait_for_publisher(node, name)
    answer: dict[str, Any] = {
        "publishers": node.count_publishers(name),
        "others": _image_topics(node),
        "profile": str(share_folder() / "config" / "fastdds.xml"),
        "count": 0,
        "rate_hz": 0.0,
        "size": "",
    }
    if kind is None:
        answer["publishers"] = 0
        return answer
    arrivals_s: list[float] = []

    def on_image(message: Any) -> None:
        arrivals_s.append(time.monotonic())
        if isinstance(message, Image):
            answer["size"] = f"{message.width}x{message.height} {message.encoding}"
        else:
            answer["size"] = f"{message.format}, {len(message.data) / 1e3:.0f} KB"

    node.create_subscription(kind, name, on_image, SENSOR_QOS)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        rclpy.spin_once(node, timeout_sec=PERIOD_S)
    answer["count"] = len(arrivals_s)
    if len(arrivals_s) > 1:
        answer["rate_hz"] = (len(arrivals_s) - 1) / (arrivals_s[-1] - arrivals_s[0])
    return answer


def _wait_for_publisher(node: Node, name: str) -> Any:
    """The type of the images on a topic, None where nobody publishes any."""
    end_s = time.monotonic() + GRAPH_S
    while time.monotonic() < end_s:
        for offer in node.get_publishers_info_by_topic(name):
            if offer.topic_type in IMAGE_TYPES:
                return IMAGE_TYPES[offer.topic_type]
        rclpy.spin_once(node, timeout_sec=PERIOD_S)
    return None


def _image_topics(node: Node) -> list[str]:
    return [
        name
        for name, types in node.get_topic_names_and_types()
        if set(types) & set(IMAGE_TYPES) and node.count_publishers(name)
    ]


def main(arguments: list[str]) -> int:
    """`python -m nvila_ros.ros_probe discovery | say WORD | camera TOPIC SECONDS`."""
    what, *rest = arguments
    try:
        if what == "camera":
            answer = camera(rest[0], float(rest[1]))
        else:
            answer = say(rest[0]) if what == "say" else discovery()
    except Exception as error:  # the doctor wants to hear it, not to die of it
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Recorder: hears what a drive says, as its topics appear, and writes one MCAP file."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from nvila_ros import ros_images, ros_parameters
from nvila_ros.errors import DataError, NvilaError
from nvila_ros.recording.bag_writer import BagWriter
from nvila_ros.ros_main import SafeNode, run_node, steady_clock
from nvila_ros.settings import check_settings, setting

LOOK_PERIOD_S = 0.25  # for topics that have appeared
FLUSH_PERIOD_S = 1.0
QUEUE = 50
EARLY_SHARE = 0.25  # of the period between images: cameras are not punctual
_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_STRING = "std_msgs/msg/String"
# Relative names, so that remapping and namespaces hold here as in the navigator.
TOPICS = (
    *("odom", "cmd_vel", "instruction", "emergency_stop", "collision"),
    *("navigator/decision", "navigator/primitive", "navigator/state", "navigator/plan"),
    *("camera_info", "/diagnostics", "/tf", "/tf_static"),
)


@dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """Settings of the recorder node."""

    output: str = setting("", "file to write; empty is drive_<date>_<time>.mcap in this folder")
    instruction: str = setting("", "what the robot is told, written where nobody else says it")
    jpeg_quality: int = setting(90, "of raw images, which are compressed", at_least=1, at_most=100)
    max_image_rate_hz: float = setting(0.0, "images above this rate are dropped; 0 keeps all")
    scan: bool = setting(False, "record the lidar too")
    extra_topics: str = setting("", "more topics, separated by commas")
    min_free_mb: int = setting(500, "recording ends when the disk has less room, MB", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)


class RecorderNode(SafeNode):
    """Subscribes to each wanted topic once somebody publishes it, with the publisher's own QoS."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__("recorder", **node_options)
        self.settings = ros_parameters.declare(self, RecorderConfig)
        name = self.settings.output or time.strftime("drive_%Y%m%d_%H%M%S.mcap")
        self.path = Path(name).expanduser().with_suffix(".mcap")
        self.writer = BagWriter(self.path)
        extra = [topic.strip() for topic in self.settings.extra_topics.split(",")]
        self._waiting = {*TOPICS, *filter(None, extra), *(["scan"] if self.settings.scan else [])}
        self._image_topic = self.resolve_topic_name("image")
        self._hears_images = False
        self._image_due_s = 0.0
        self._refused: set[str] = set()
        if self.settings.instruction:
            text = serialize_message(String(data=self.settings.instruction))
            topic = self.resolve_topic_name("instruction")
            self.writer.write(topic, _STRING, text, time.time_ns())
        # An instruction is said once: nobody may be too late for it.
        self._subscribe("instruction", _STRING, QoSProfile(depth=QUEUE))
        self.create_timer(LOOK_PERIOD_S, self._look, clock=steady_clock())
        self.create_timer(FLUSH_PERIOD_S, self._on_flush, clock=steady_clock())
        self.get_logger().info(f"recording to {self.path}")

    def shut_down(self) -> None:
        """Index and summary, then what was heard, by topic."""
        with contextlib.suppress(OSError):  # a full disk: what is whole is read all the same
            self.writer.close()
        for topic, count in sorted(self.writer.num_messages.items()):
            self.get_logger().info(f"{count:7d}  {topic}")
        megabytes = self.path.stat().st_size / 1e6 if self.path.exists() else 0.0
        self.get_logger().info(f"{self.path}: {megabytes:.1f} MB")
        if not self._hears_images:
            self.get_logger().warning(
                f"no image was heard on {self._image_topic} or {self._image_topic}/compressed; "
                "remap `image` to your camera's topic"
            )

    def _look(self) -> None:
        """Subscribes to what has appeared."""
        if not self._hears_images:
            self._look_for_images()
        for name in sorted(self._waiting):
            offers = self.get_publishers_info_by_topic(self.resolve_topic_name(name))
            if offers:
                self._subscribe(name, offers[0].topic_type, _matching(offers))

    def _look_for_images(self) -> None:
        """The compressed twin is preferred: nothing is decoded or encoded then."""
        compressed = self._image_topic + "/compressed"
        offers = self.get_publishers_info_by_topic(compressed)
        if offers:
            self._hears_images = True
            self._subscribe(compressed, _COMPRESSED, _matching(offers))
            return
        offers = self.get_publishers_info_by_topic(self._image_topic)
        if offers and offers[0].topic_type == _COMPRESSED:
            self._hears_images = True
            self._subscribe(self._image_topic, _COMPRESSED, _matching(offers))
        elif offers:
            self._hears_images = True
            qos = _matching(offers)
            self.create_subscription(Image, self._image_topic, self._on_image, qos)

    def _subscribe(self, name: str, datatype: str, qos: QoSProfile) -> None:
        self._waiting.discard(name)
        topic = self.resolve_topic_name(name)
        kind = message_class(datatype)
        if kind is None:
            self.get_logger().warning(f"{topic} is left out: {datatype} is not installed")
            return
        limited = datatype == _COMPRESSED

        def on_message(content: bytes) -> None:
            if not (limited and self._too_soon()):
                self._write(topic, datatype, content)

        self.create_subscription(kind, topic, on_message, qos, raw=True)

    def _on_image(self, message: Image) -> None:
        if self._too_soon():
            return
        try:
            rgb = ros_images.to_rgb(message)
            small: CompressedImage = ros_images.compressed_from_rgb(
                rgb, message.header.stamp, message.header.frame_id, self.settings.jpeg_quality
            )
        except NvilaError as error:
            if str(error) not in self._refused:
                self._refused.add(str(error))
                self.get_logger().error(f"image left out: {error}")
            return
        self._write(self._image_topic + "/compressed", _COMPRESSED, serialize_message(small))

    def _too_soon(self) -> bool:
        """Keeps the mean rate: a slightly early image is taken, the next one is due later."""
        if self.settings.max_image_rate_hz <= 0.0:
            return False
        now_s, period_s = time.monotonic(), 1.0 / self.settings.max_image_rate_hz
        if now_s < self._image_due_s - EARLY_SHARE * period_s:
            return True
        self._image_due_s = max(self._image_due_s + period_s, now_s)
        return False

    def _write(self, topic: str, datatype: str, content: bytes) -> None:
        try:
            self.writer.write(topic, datatype, content, time.time_ns())
        except DataError as error:  # a definition that is not installed
            if topic not in self._refused:
                self._refused.add(topic)
                self.get_logger().warning(f"{topic} is left out: {error}")
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error.strerror}); the recording ends"
            ) from None

    def _on_flush(self) -> None:
        self.writer.flush()
        free_mb = shutil.disk_usage(self.path.parent).free / 1e6
        if free_mb < self.settings.min_free_mb:
            raise DataError(
                f"the disk of {self.path} has only {free_mb:.0f} MB left, the recording ends; "
                "what was recorded is whole. Make room, or lower min_free_mb"
            )


def message_class(datatype: str) -> Any:
    """'std_msgs/msg/String' -> its class, or None where the package is not installed."""
    package, kind, name = datatype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError):
        return None


def _matching(offers: list[Any]) -> QoSProfile:
    """The strictest profile that all publishers of a topic can meet."""
    profiles = [offer.qos_profile for offer in offers]
    reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
    latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
    return QoSProfile(
        depth=QUEUE,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros recorder_node`."""
    return run_node(RecorderNode, arguments)


if __name__ == "__main__":
    sys.exit(main())

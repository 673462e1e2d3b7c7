# SPDX-License-Identifier: Apache-2.0
"""Decoded messages of a bag as plain values: pictures, poses, texts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvila_ros.errors import DataError, ImageError

_NANOSECONDS = 1e-9


@dataclass(frozen=True)
class Picture:
    """A camera image: encoded bytes, or a raw message."""

    log_s: float
    stamp_s: float
    content: bytes | None
    message: Any = field(default=None, repr=False)

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB; ImageError where it cannot be decoded."""
        if self.content is None:
            return _raw_rgb(self.message)
        import cv2

        bgr = cv2.imdecode(np.frombuffer(self.content, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ImageError(f"the picture at {self.stamp_s:.3f} s is no JPEG or PNG")
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class Said:
    """A text on a topic; `row` is its JSON where it has one."""

    log_s: float
    text: str
    row: dict[str, Any] = field(default_factory=dict)


def pose_row(log_s: float, message: Any) -> tuple[float, float, float, float, float]:
    """log_s, stamp_s, x_m, y_m, yaw_rad of an odometry message."""
    pose = message.pose.pose
    turn = pose.orientation
    yaw_rad = math.atan2(
        2.0 * (turn.w * turn.z + turn.x * turn.y), 1.0 - 2.0 * (turn.y**2 + turn.z**2)
    )
    return log_s, _stamp_s(message), pose.position.x, pose.position.y, yaw_rad


def picture_of(log_s: float, message: Any) -> Picture:
    """Of a compressed or a raw image message."""
    stamp_s = _stamp_s(message)
    if hasattr(message, "format"):
        return Picture(log_s, stamp_s, bytes(message.data))
    return Picture(log_s, stamp_s, None, message)


def said_of(log_s: float, text: str, is_json: bool) -> Said:
    """Of a string message; JSON that cannot be read, or is no object, is an empty row."""
    try:
        row = json.loads(text) if is_json else {}
    except ValueError:
        row = {}
    return Said(log_s, text, row if isinstance(row, dict) else {})


def _stamp_s(message: Any) -> float:
    stamp = message.header.stamp
    return float(stamp.sec + stamp.nanosec * _NANOSECONDS)


def _raw_rgb(message: Any) -> np.ndarray:
    """Of a sensor_msgs/Image that was recorded as it is."""
    try:
        from nvila_ros import ros_images
    except ImportError as error:
        raise DataError(
            f"raw images are converted with ROS's messages ({error}); source a ROS 2, or record "
            "with `nvila record`, which writes JPEG"
        ) from None
    return ros_images.to_rgb(message)

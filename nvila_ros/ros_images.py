# SPDX-License-Identifier: Apache-2.0
"""Between sensor_msgs images and (H, W, 3) uint8 RGB arrays; unusual encodings go to cv_bridge."""

from __future__ import annotations

import array
import sys
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from nvila_ros.errors import ImageError

# encoding -> (type of one value, values per pixel, cv2 conversion to RGB or None)
_COLOUR = {
    "rgb8": (np.uint8, 3, None),
    "8UC3": (np.uint8, 3, cv2.COLOR_BGR2RGB),
    "bgr8": (np.uint8, 3, cv2.COLOR_BGR2RGB),
    "rgba8": (np.uint8, 4, cv2.COLOR_RGBA2RGB),
    "bgra8": (np.uint8, 4, cv2.COLOR_BGRA2RGB),
    "8UC4": (np.uint8, 4, cv2.COLOR_BGRA2RGB),
    "mono8": (np.uint8, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": (np.uint8, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (np.uint16, 3, None),
    "bgr16": (np.uint16, 3, cv2.COLOR_BGR2RGB),
    "mono16": (np.uint16, 1, cv2.COLOR_GRAY2RGB),
    "yuv422_yuy2": (np.uint8, 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (np.uint8, 2, cv2.COLOR_YUV2RGB_YUY2),
    "uyvy": (np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": (np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    # OpenCV names a Bayer pattern by its second row and columns two and three.
    "bayer_rggb8": (np.uint8, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (np.uint8, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (np.uint8, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (np.uint8, 1, cv2.COLOR_BayerGB2RGB),
}
# Measurements, not pictures: only `to_array` reads them.
_PLAIN = {
    "16UC1": (np.uint16, 1),
    "16SC1": (np.int16, 1),
    "32FC1": (np.float32, 1),
    "64FC1": (np.float64, 1),
    "32SC1": (np.int32, 1),
}
_MAX_SIDE_PX = 16384


def to_array(message: Image) -> np.ndarray:
    """(H, W) or (H, W, C) in the message's own type and channel order; a view where possible."""
    encoding = message.encoding
    kind: type
    if encoding in _COLOUR:
        kind, channels, _ = _COLOUR[encoding]
    elif encoding in _PLAIN:
        kind, channels = _PLAIN[encoding]
    else:
        raise _unknown(encoding)
    height, width, row_bytes = message.height, message.width, message.step
    if not (0 < height <= _MAX_SIDE_PX and 0 < width <= _MAX_SIDE_PX):
        raise ImageError(f"the image is {width}x{height} px; expected 1 to {_MAX_SIDE_PX} a side")
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    needed = width * channels * dtype.itemsize
    row_bytes = row_bytes or needed
    data = np.frombuffer(message.data, np.uint8)
    if row_bytes < needed or len(data) < row_bytes * (height - 1) + needed:
        raise ImageError(
            f"a {width}x{height} {encoding} image needs rows of {needed} bytes, "
            f"got {len(data)} bytes in rows of {message.step}"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, needed), (row_bytes, 1), writeable=False)
    pixels = rows if row_bytes == needed else np.ascontiguousarray(rows)
    values = np.ascontiguousarray(pixels).view(dtype)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return values.astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def to_rgb(message: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of its own memory; ImageError says what to publish instead."""
    if message.encoding in _PLAIN:
        raise ImageError(
            f"encoding {message.encoding!r} is no colour picture; give the camera's colour topic"
        )
    if message.encoding not in _COLOUR:
        return _by_cv_bridge(message)
    pixels = to_array(message)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    conversion = _COLOUR[message.encoding][2]
    if conversion is None:
        return pixels.copy() if not pixels.flags.owndata else pixels
    try:
        return cv2.cvtColor(pixels, conversion)
    except cv2.error as error:  # for instance an odd width in a format of pixel pairs
        raise ImageError(f"the {message.encoding} image cannot be converted: {error}") from error


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG or PNG picture."""
    data = np.frombuffer(message.data, np.uint8)
    if data.size == 0:
        raise ImageError("the compressed image is empty; check the camera or the republisher")
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"the compressed image cannot be decoded: {error}") from error
    if bgr is None:
        raise ImageError(
            f"the compressed image ({message.format!r}, {data.size} bytes) is no JPEG or PNG"
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def from_rgb(rgb: np.ndarray, stamp: Any, frame_id: str) -> Image:
    """(H, W, 3) uint8 RGB -> an rgb8 message."""
    _check_rgb(rgb)
    message = Image(encoding="rgb8", height=rgb.shape[0], width=rgb.shape[1])
    message.header.stamp, message.header.frame_id = stamp, frame_id
    message.step = rgb.shape[1] * 3
    message.is_bigendian = int(sys.byteorder == "big")
    message.data = _bytes(rgb)
    return message


def compressed_from_rgb(
    rgb: np.ndarray, stamp: Any, frame_id: str, quality: int = 90
) -> CompressedImage:
    """(H, W, 3) uint8 RGB -> a JPEG message."""
    _check_rgb(rgb)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), settings)
    message = CompressedImage(format="jpeg")
    message.header.stamp, message.header.frame_id = stamp, frame_id
    message.data = _bytes(encoded)
    return message


def _unknown(encoding: str) -> ImageError:
    known = ", ".join(sorted({*_COLOUR, *_PLAIN}))
    return ImageError(
        f"image encoding {encoding!r} is unknown; publish rgb8 or bgr8, known are {known}"
    )


def _check_rgb(rgb: np.ndarray) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(f"expected (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")


def _bytes(values: np.ndarray) -> array.array:
    """The only quick way into a message: assigning an ndarray checks every element."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).data.cast("B"))
    return data


def _by_cv_bridge(message: Image) -> np.ndarray:
    """An encoding we do not know, by the ROS installation's cv_bridge where there is one."""
    try:
        from cv_bridge import CvBridge
    except ImportError as error:
        raise _unknown(message.encoding) from error
    try:
        rgb = CvBridge().imgmsg_to_cv2(message, "rgb8")
    except Exception as error:  # CvBridgeError, or whatever its binary part throws
        raise ImageError(
            f"cv_bridge cannot convert encoding {message.encoding!r}: {error}"
        ) from error
    return np.ascontiguousarray(rgb)

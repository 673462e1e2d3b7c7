# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB and back: every common encoding, padded rows, and what is refused."""

import array
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

import cv2
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from nvila_ros import ros_images
from nvila_ros.errors import ImageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]
OPAQUE = np.full((6, 8, 1), 255, np.uint8)
STAMP = Time(sec=3, nanosec=7)


def message(pixels, encoding, padding=0, big_endian=False):
    """A message from an array, with `padding` bytes at the end of each row."""
    pixels = np.ascontiguousarray(pixels)
    rows = pixels.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    data = array.array("B", rows.tobytes())
    height, width = pixels.shape[:2]
    return Image(
        encoding=encoding,
        height=height,
        width=width,
        step=rows.shape[1],
        is_bigendian=int(big_endian),
        data=data,
    )


CASES = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "8UC3": (RGB[..., ::-1], RGB),
    "rgba8": (np.concatenate([RGB, OPAQUE], 2), RGB),
    "bgra8": (np.concatenate([RGB[..., ::-1], OPAQUE], 2), RGB),
    "8UC4": (np.concatenate([RGB[..., ::-1], OPAQUE], 2), RGB),
    "mono8": (GREY, np.stack([GREY] * 3, 2)),
    "8UC1": (GREY, np.stack([GREY] * 3, 2)),
    "rgb16": (RGB.astype(np.uint16) * 257, RGB),
    "bgr16": (RGB[..., ::-1].astype(np.uint16) * 257, RGB),
    "mono16": (GREY.astype(np.uint16) * 257, np.stack([GREY] * 3, 2)),
}


@pytest.mark.parametrize("encoding", CASES)
@pytest.mark.parametrize("padding", [0, 6])
def test_colour_encodings(encoding, padding):
    pixels, expected = CASES[encoding]
    rgb = ros_images.to_rgb(message(pixels, encoding, padding))
    np.testing.assert_array_equal(rgb, expected)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous


@pytest.mark.parametrize("pattern, places", [
    ("rggb", "rggb"), ("bggr", "bggr"), ("gbrg", "gbrg"), ("grbg", "grbg"),
])  # fmt: skip
def test_bayer_patterns_keep_the_colour(pattern, places):
    colour = {"r": 200, "g": 100, "b": 30}
    cell = np.array([colour[letter] for letter in places], np.uint8).reshape(2, 2)
    rgb = ros_images.to_rgb(message(np.tile(cell, (6, 6)), f"bayer_{pattern}8"))
    np.testing.assert_allclose(rgb[4:8, 4:8], np.broadcast_to((200, 100, 30), (4, 4, 3)), atol=2)


@pytest.mark.parametrize("encoding, order", [("yuv422_yuy2", "yuyv"), ("uyvy", "uyvy")])
def test_grey_in_pixel_pairs(encoding, order):
    pair = {"y": 126, "u": 128, "v": 128}
    pixels = np.array([pair[letter] for letter in order], np.uint8).reshape(1, 2, 2)
    rgb = ros_images.to_rgb(message(np.tile(pixels, (4, 4, 1)), encoding))
    np.testing.assert_allclose(rgb, 128, atol=2)


@pytest.mark.parametrize(
    "encoding, kind",
    [("16UC1", np.uint16), ("16SC1", np.int16), ("32FC1", np.float32), ("64FC1", np.float64)],
)
@pytest.mark.parametrize("other_order", [False, True])
def test_measurements_keep_their_values(encoding, kind, other_order):
    values = np.arange(12).reshape(3, 4).astype(kind) * 257
    sent = values.astype(values.dtype.newbyteorder()) if other_order else values
    big_endian = (sys.byteorder == "big") != other_order
    read = ros_images.to_array(message(sent, encoding, padding=8, big_endian=big_endian))
    np.testing.assert_array_equal(read, values)
    assert read.dtype == kind


def test_a_depth_image_is_no_picture():
    with pytest.raises(ImageError, match="colour"):
        ros_images.to_rgb(message(GREY.astype(np.uint16), "16UC1"))


def test_an_unknown_encoding_says_what_to_publish():
    with pytest.raises(ImageError, match=r"holographic.*rgb8"):
        ros_images.to_rgb(message(RGB, "holographic"))


def test_what_we_do_not_know_goes_to_cv_bridge(monkeypatch):
    class Bridge:
        def imgmsg_to_cv2(self, _message, wanted):
            assert wanted == "rgb8"
            return RGB

    module = type(sys)("cv_bridge")
    module.CvBridge = Bridge
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    np.testing.assert_array_equal(ros_images.to_rgb(message(RGB, "nv12")), RGB)


@pytest.mark.parametrize("height, width", [(0, 0), (0, 8), (6, 0), (6, 20000)])
def test_impossible_sizes(height, width):
    with pytest.raises(ImageError, match="px"):
        ros_images.to_rgb(Image(encoding="rgb8", height=height, width=width, step=width * 3))


def test_too_few_bytes():
    short = message(RGB, "rgb8")
    short.data = short.data[:-1]
    with pytest.raises(ImageError, match="bytes"):
        ros_images.to_rgb(short)


def test_rows_shorter_than_their_pixels():
    short = message(RGB, "rgb8")
    short.step = 5
    with pytest.raises(ImageError, match="rows"):
        ros_images.to_rgb(short)


def test_the_picture_is_not_the_message():
    sent = message(RGB, "rgb8")
    rgb = ros_images.to_rgb(sent)
    rgb[:] = 0
    np.testing.assert_array_equal(ros_images.to_rgb(sent), RGB)


def test_there_and_back():
    sent = ros_images.from_rgb(RGB, STAMP, "camera")
    assert (sent.encoding, sent.width, sent.height, sent.step) == ("rgb8", 8, 6, 24)
    assert sent.header.stamp == STAMP and sent.header.frame_id == "camera"
    np.testing.assert_array_equal(ros_images.to_rgb(sent), RGB)


def test_not_contiguous_pixels_are_sent_right():
    sent = ros_images.from_rgb(RGB[:, ::-1], STAMP, "camera")
    np.testing.assert_array_equal(ros_images.to_rgb(sent), RGB[:, ::-1])


@pytest.mark.parametrize("pixels", [RGB[..., 0], RGB.astype(np.float32), RGB[:0]])
def test_only_rgb_is_sent(pixels):
    with pytest.raises(ImageError):
        ros_images.from_rgb(pixels, STAMP, "camera")


def test_compressed_there_and_back():
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    sent = ros_images.compressed_from_rgb(flat, STAMP, "camera")
    assert sent.format == "jpeg"
    np.testing.assert_allclose(ros_images.compressed_to_rgb(sent), flat, atol=6)


def test_png_is_exact():
    _, encoded = cv2.imencode(".png", RGB[..., ::-1])
    sent = CompressedImage(format="png", data=array.array("B", encoded.tobytes()))
    np.testing.assert_array_equal(ros_images.compressed_to_rgb(sent), RGB)


@pytest.mark.parametrize("data", [b"", b"not a picture"])
def test_compressed_nonsense(data):
    with pytest.raises(ImageError, match="compressed image"):
        ros_images.compressed_to_rgb(CompressedImage(data=array.array("B", data)))

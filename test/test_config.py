# SPDX-License-Identifier: Apache-2.0
"""Configuration: what a YAML file may hold, and what each mistake is answered with."""

import dataclasses
from typing import Literal

import pytest

from nvila_ros import config
from nvila_ros.config import HistoryConfig
from nvila_ros.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    height_m: float
    size_px: tuple[int, int] = (640, 480)
    encoding: Literal["rgb8", "bgr8"] = "rgb8"
    frame_id: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robot:
    camera: Camera
    enabled: bool = True


def test_load_fills_defaults_and_nested_groups():
    robot = config.load(Robot, {"camera": {"height_m": 1, "size_px": [320, 240]}})
    assert robot == Robot(camera=Camera(height_m=1.0, size_px=(320, 240)))


def test_unknown_key_suggests_the_nearest():
    with pytest.raises(ConfigError, match="unknown key 'num_frame'; did you mean 'num_frames'"):
        config.load(HistoryConfig, {"num_frame": 8})


def test_unknown_key_without_a_near_one_lists_the_known():
    with pytest.raises(ConfigError, match="known keys are capacity, num_frames"):
        config.load(HistoryConfig, {"zzzz": 8})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"camera": {}}, "missing height_m"),
        ({"camera": 3}, "expected a mapping of Camera keys, got int"),
        ({"camera": {"height_m": "1.2"}}, "camera.height_m is '1.2', expected float"),
        ({"camera": {"height_m": True}}, "camera.height_m is True, expected float"),
        ({"camera": {"height_m": 1.0, "size_px": [1, 2, 3]}}, "3 entries, expected 2"),
        ({"camera": {"height_m": 1.0, "encoding": "yuv"}}, "expected one of 'rgb8', 'bgr8'"),
        ({"camera": {"height_m": 1.0, "heigth_m": 1.0}}, "did you mean 'height_m'"),
        ({"camera": {"height_m": 1.0}, "enabled": "yes"}, "enabled is 'yes', expected bool"),
    ],
)
def test_mistakes_are_named(mapping, message):
    with pytest.raises(ConfigError, match=message):
        config.load(Robot, mapping)


@pytest.mark.parametrize(
    "mapping",
    [{"num_frames": 0}, {"capacity": 4}, {"step_m": 0.0}, {"step_tolerance": 2.0}],
)
def test_values_that_make_no_sense_are_refused(mapping):
    with pytest.raises(ConfigError):
        config.load(HistoryConfig, mapping)

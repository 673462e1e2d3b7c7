# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from PIL import Image

from nvila_ros.errors import ConfigError
from nvila_ros.training.data.augmentation import Augmentation, AugmentationConfig, camera_warp

VIEW_RAD = math.radians(90)
ALWAYS = AugmentationConfig(share=1.0, blur_share=1.0, jpeg_share=1.0)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(count)
    ]


def project(matrix: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    point = matrix @ np.array([*pixel, 1.0])
    return point[:2] / point[2]


def test_the_same_seed_and_key_give_the_same_pictures() -> None:
    first, again = (Augmentation(ALWAYS, 1)(pictures(2), "a") for _ in range(2))
    other_key = Augmentation(ALWAYS, 1)(pictures(2), "b")
    other_seed = Augmentation(ALWAYS, 2)(pictures(2), "a")
    assert [p.tobytes() for p in first] == [p.tobytes() for p in again]
    assert first[0].tobytes() != other_key[0].tobytes() != other_seed[0].tobytes()
    assert [p.size for p in first] == [(64, 48)] * 2


def test_black_padding_stays_black() -> None:
    black = Image.new("RGB", (64, 48))
    changed = Augmentation(ALWAYS, 1)([black, *pictures(1)], "a")
    assert changed[0] is black and changed[1].getbbox() is not None


def test_all_changes_off_changes_nothing() -> None:
    off = AugmentationConfig(
        **dict.fromkeys(
            ("brightness", "contrast", "saturation", "colour_balance", "gamma", "noise"), 0.0
        ),
        **dict.fromkeys(("roll_deg", "pitch_deg", "height_share", "field_of_view_deg"), 0.0),
        blur_share=0.0,
        jpeg_share=0.0,
        share=1.0,
    )
    before = pictures(1)
    after = Augmentation(off, 1)(before, "a")
    difference = np.asarray(after[0]).astype(int) - np.asarray(before[0])
    assert np.abs(difference).max() <= 1


def test_no_motion_is_the_identity() -> None:
    matrix = camera_warp(64, 48, VIEW_RAD)
    np.testing.assert_allclose(matrix / matrix[2, 2], np.eye(3), atol=1e-12)


def test_a_camera_that_looks_up_moves_the_picture_down() -> None:
    pitch = math.radians(3)
    matrix = camera_warp(65, 65, VIEW_RAD, pitch_rad=pitch)
    focal = 32.5
    np.testing.assert_allclose(
        project(matrix, (32, 32)), [32, 32 - focal * math.tan(pitch)], atol=1e-9
    )


def test_a_camera_rolled_counter_clockwise_sees_its_right_raised() -> None:
    matrix = camera_warp(65, 65, VIEW_RAD, roll_rad=math.radians(5))
    x, y = project(matrix, (62, 32))
    assert y < 32 and x < 62
    np.testing.assert_allclose(project(matrix, (32, 32)), [32, 32], atol=1e-9)


def test_a_wider_view_shows_what_lay_outside() -> None:
    matrix = camera_warp(65, 65, VIEW_RAD, field_of_view_rad=math.radians(100))
    assert project(matrix, (64, 32))[0] > 64 and project(matrix, (0, 32))[0] < 0


def test_a_floor_point_is_where_a_higher_camera_sees_it() -> None:
    height_m, share, distance_m, focal = 1.25, 0.1, 3.0, 32.5
    old_row = 32 + focal * height_m / distance_m
    new_row = 32 + focal * height_m * (1 + share) / distance_m
    matrix = camera_warp(65, 65, VIEW_RAD, height_share=share)
    np.testing.assert_allclose(project(matrix, (40, new_row))[1], old_row, atol=1e-9)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="jpeg_share"):
        AugmentationConfig(jpeg_share=2.0)
    with pytest.raises(ConfigError, match="less than 20"):
        AugmentationConfig(camera_field_of_view_deg=30, field_of_view_deg=20)

# SPDX-License-Identifier: Apache-2.0
"""Frame history: sampling by motion, NaVILA's choice of frames, and a flat memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.config import HistoryConfig
from nvila_ros.errors import ImageError, OdometryError
from nvila_ros.history import FrameHistory


def image(value: int = 0) -> np.ndarray:
    return np.full((2, 2, 3), value % 256, np.uint8)


def driven(num_samples: int, **config) -> FrameHistory:
    """A history after driving straight through `num_samples` samples, 0.25 m apart."""
    history = FrameHistory(HistoryConfig(**config))
    for number in range(num_samples):
        assert history.append(image(number), 0.25 * number, 0.0, 0.0, float(number))
    return history


def indices(history: FrameHistory) -> list[int | None]:
    return [None if frame is None else frame.index for frame in history.select()]


def test_empty_history_shows_only_black():
    assert FrameHistory().select() == [None] * 8


def test_first_frame_is_kept_and_shown_last():
    assert indices(driven(1)) == [None] * 7 + [0]


def test_black_padding_stands_in_front():
    assert indices(driven(5)) == [None, None, None, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, [0, 1, 2, 3, 4, 5, 6, 8]),
        (20, [0, 2, 5, 8, 10, 13, 16, 19]),
        (100, [0, 14, 28, 42, 56, 70, 84, 99]),
    ],
)
def test_selection_repeats_navila(num_samples, expected):
    assert indices(driven(num_samples)) == expected


def test_standing_still_never_fills_the_history():
    history = FrameHistory()
    stored = [history.append(image(number), 0.01, 0.0, 0.0, number) for number in range(50)]
    assert stored == [True] + [False] * 49
    assert indices(history) == [None] * 7 + [0]


def test_newest_image_is_the_current_one_while_standing():
    history = FrameHistory()
    history.append(image(1), 0.0, 0.0, 0.0, 0.0)
    history.append(image(2), 0.0, 0.0, 0.0, 1.0)
    assert history.select()[-1].rgb[0, 0, 0] == 2


def test_a_shown_image_stays_in_the_history_as_it_was_shown():
    history = FrameHistory()
    history.append(image(1), 0.0, 0.0, 0.0, 0.0)
    history.append(image(2), 0.0, 0.0, 0.0, 1.0)
    shown = history.select()[-1]
    history.append(image(3), 0.25, 0.0, 0.0, 2.0)
    assert history.select()[-2] is shown


def test_frame_between_two_samples_is_kept_only_when_it_was_shown():
    history = driven(3)
    assert not history.append(image(9), 0.5 + 0.2, 0.0, 0.0, 3.0)
    assert len(history) == 3
    assert indices(history) == [None] * 4 + [0, 1, 2, 3]
    assert len(history) == 4


def test_a_turn_seen_by_a_camera_counts_like_its_units():
    history = FrameHistory()
    for number in range(9):  # 45 degrees in images that are 5.7 degrees apart
        history.append(image(), 0.0, 0.0, min(math.radians(5.7 * number), math.radians(45)), number)
    assert indices(history) == [None] * 4 + [0, 1, 2, 3]


def test_turning_on_the_spot_is_motion_also_across_pi():
    history = FrameHistory()
    history.append(image(), 0.0, 0.0, math.pi - 0.01, 0.0)
    assert not history.append(image(), 0.0, 0.0, -math.pi + 0.01, 1.0)
    assert history.append(image(), 0.0, 0.0, -math.pi - 0.01 + math.radians(15), 2.0)


def test_a_creeping_robot_still_reaches_the_next_sample():
    history = FrameHistory()
    for number in range(101):
        history.append(image(), 0.01 * number, 0.0, 0.0, number)
        history.select()
    assert 5 <= len(history) <= 9


def test_clear_forgets_the_episode():
    history = driven(12)
    history.clear()
    assert len(history) == 0 and history.current is None
    history.append(image(), 0.0, 0.0, 0.0, 0.0)
    assert indices(history) == [None] * 7 + [0]


def test_capacity_bounds_the_store_and_keeps_the_first_frame():
    history = driven(1000, capacity=32)
    assert len(history) == 32
    shown = indices(history)
    assert shown[0] == 0 and shown[-1] == 999
    wanted = np.linspace(0, 999, num=7, endpoint=False, dtype=int)
    assert np.abs(np.array(shown[:-1]) - wanted).max() <= 40


@settings(max_examples=50, deadline=None)
@given(num_samples=st.integers(1, 120), capacity=st.integers(8, 40), num_frames=st.integers(1, 8))
def test_selection_is_ordered_bounded_and_ends_with_the_current(num_samples, capacity, num_frames):
    history = driven(num_samples, capacity=capacity, num_frames=num_frames)
    shown = history.select()
    real = [frame.index for frame in shown if frame is not None]
    assert len(shown) == num_frames and len(history) <= capacity
    assert real == sorted(real) and real[-1] == num_samples - 1
    assert shown[: num_frames - len(real)] == [None] * (num_frames - len(real))


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        None,
    ],
)
def test_unusable_images_are_refused(rgb):
    with pytest.raises(ImageError, match="expected"):
        FrameHistory().append(rgb, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("pose", [(math.nan, 0, 0), (0, math.inf, 0), (0, 0, math.nan)])
def test_odometry_that_is_not_finite_is_refused(pose):
    with pytest.raises(OdometryError, match="not finite"):
        FrameHistory().append(image(), *pose, 0.0)

# SPDX-License-Identifier: Apache-2.0
"""Pixels bit for bit as PIL and the reference's arithmetic give them, and how pictures are cut."""

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_ros.errors import ImageError
from nvila_ros.models.preprocess import (
    closest_grid,
    frame_pixels,
    image_tiles,
    to_pixels,
    video_pixels,
)


def picture(width=70, height=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_bytes(pixels):
    return (pixels * 127.5 + 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(70, 50), (40, 40), (31, 97), (400, 300)])
def test_resizing_is_pils_bicubic(make_config, size):
    frame = picture(*size)
    expected = np.asarray(Image.fromarray(frame).resize((40, 40), Image.Resampling.BICUBIC))
    assert np.array_equal(as_bytes(frame_pixels(frame, make_config())), expected)


def test_values_are_rounded_as_in_the_reference():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = to_pixels([Image.fromarray(np.dstack([levels] * 3))])
    rescaled = (levels.astype(np.float64) * (1 / 255)).astype(np.float32)
    expected = (rescaled - np.float32(0.5)) / np.float32(0.5)
    assert pixels.dtype == torch.float32
    assert np.array_equal(pixels[0, 0].numpy(), expected)


def test_padding_centres_on_grey(make_config):
    pixels = frame_pixels(picture(40, 20), make_config(image_aspect_ratio="pad"))
    assert np.array_equal(as_bytes(pixels)[10:30], picture(40, 20))
    assert np.all(as_bytes(pixels)[:10] == 127)


def test_alpha_is_dropped(make_config):
    rgba = Image.fromarray(np.dstack((picture(40, 40), np.zeros((40, 40), np.uint8))))
    assert np.array_equal(as_bytes(frame_pixels(rgba, make_config())), picture(40, 40))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(make_config, frame):
    with pytest.raises(ImageError):
        frame_pixels(frame, make_config())


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((500, 300), (3, 2)),
        ((300, 500), (2, 3)),
        ((448, 448), (1, 1)),
        ((1600, 1600), (3, 3)),  # equally near as 1x1 and 2x2, and large enough to fill it
        ((3000, 200), (12, 1)),
        ((560, 448), (4, 3)),
    ],
)
def test_grid_follows_the_aspect(size, grid):
    assert closest_grid(size, 1, 12, 448) == grid


def test_lite_cuts_row_by_row_and_ends_with_a_thumbnail(make_config):
    frame = picture(80, 40)
    tiles = image_tiles([frame], make_config(image_aspect_ratio="dynamic"))
    thumbnail = np.asarray(Image.fromarray(frame).resize((40, 40)))
    assert tiles.tiles_per_image == (3,)
    assert [as_bytes(tile)[0, 0].tolist() for tile in tiles.pixels[:2]] == [
        frame[0, 0].tolist(),
        frame[0, 40].tolist(),
    ]
    assert np.array_equal(as_bytes(tiles.pixels[2]), thumbnail)


def test_lite_needs_no_thumbnail_of_one_tile(make_config):
    assert (
        image_tiles([picture(40, 40)], make_config(image_aspect_ratio="dynamic")).pixels.shape[0]
        == 1
    )


def test_several_pictures_are_one_tile_each(make_config):
    for mode, scales in (("dynamic", ()), ("dynamic_s2", (40, 80, 120)), ("resize", ())):
        config = make_config(image_aspect_ratio=mode, s2_scales=scales)
        tiles = image_tiles([picture(), picture(90, 10)], config)
        assert tiles.tiles_per_image == (1, 1)
        assert tiles.block is None


def test_dynamic_s2_has_every_scale_smallest_first(make_config):
    frame = picture(160, 120)
    config = make_config(image_aspect_ratio="dynamic_s2", s2_scales=(40, 80, 120))
    tiles = image_tiles([frame], config)
    assert tiles.block == (3, 4)
    assert tiles.pixels.shape[0] == 1 + 4 + 12
    largest = np.asarray(Image.fromarray(frame).resize((160, 120)))
    assert np.array_equal(as_bytes(tiles.pixels[5 + 7]), largest[40:80, 120:160])


@pytest.mark.parametrize(
    ("aspect", "most", "num_tiles"),
    [("resize", 4, 1), ("dynamic", 1, 1), ("dynamic", 4, 4), ("dynamic_s2", 4, 1 + 4 + 10)],
)
def test_frames_of_a_video_are_cut_where_the_checkpoint_asks(make_config, aspect, most, num_tiles):
    scales = (40, 80, 120) if aspect == "dynamic_s2" else ()
    config = make_config(image_aspect_ratio=aspect, video_max_tiles=most, s2_scales=scales)
    # Three columns of one row with a thumbnail, or five columns of two rows.
    size = (120, 41) if aspect != "dynamic_s2" else (100, 40)
    assert video_pixels(picture(*size), config).shape == (num_tiles, 3, 40, 40)


def test_no_pictures_are_no_tiles(make_config):
    assert image_tiles([], make_config()).pixels.shape == (0, 3, 40, 40)

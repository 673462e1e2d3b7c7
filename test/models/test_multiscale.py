# SPDX-License-Identifier: Apache-2.0
"""Order of tiles and tokens when scales are merged."""

import torch

from nvila_ros.models.multiscale import merge_scales, split, stitch


def test_stitching_puts_tiles_side_by_side():
    tiles = torch.arange(2 * 3 * 4.0).reshape(
        6, 4, 1
    )  # six tiles of 2 x 2, in 2 rows and 3 columns
    raster = stitch(tiles, 2, 3)[..., 0]
    assert raster.tolist()[0] == [0, 1, 4, 5, 8, 9]
    assert raster.tolist()[1] == [2, 3, 6, 7, 10, 11]
    assert raster.tolist()[2] == [12, 13, 16, 17, 20, 21]


def test_splitting_reverses_stitching():
    tiles = torch.rand(6, 9, 5)
    assert torch.equal(split(stitch(tiles, 2, 3), 2, 3), tiles)


def test_scales_are_stacked_on_the_channels_smallest_first():
    block = (2, 3)
    features = torch.cat(
        (torch.full((1, 4, 2), 1.0), torch.full((4, 4, 2), 2.0), torch.full((6, 4, 2), 3.0))
    )
    merged, shape = merge_scales(features, (8, 16, 24), block, output_scale=-1)
    assert shape == block
    assert merged.shape == (6, 4, 6)
    assert merged[0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_an_earlier_scale_can_set_the_raster():
    features = torch.rand(1 + 4 + 6, 4, 2)
    merged, shape = merge_scales(features, (8, 16, 24), (2, 3), output_scale=0)
    assert shape == (1, 1)
    assert torch.equal(merged[0, :, :2], features[0])

# SPDX-License-Identifier: Apache-2.0
"""Packed batches through the network: features to their places, each sample attending to itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nvila_ros.models.multiscale import merge_scales, stitch
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.temporal import pool_frames
from nvila_ros.training.data.encoding import Media
from nvila_ros.training.data.packing import PackedBatch


def embed_batch(model: Nvila, batch: PackedBatch, *, touches_all: bool = True) -> Tensor:
    """The fused embeddings (1, L, D) of a batch whose pixels are floats on the model's device.

    The tower and the projector run exactly once, over all tiles: ranks of a sharded model stay in
    step whatever their pictures are. With `touches_all` a batch without pictures encodes one black
    tile whose features count zero times, so that every parameter takes part on every rank.
    """
    # Not a view of (L, D): compiled layers would be compiled once for the first, once for the rest.
    text = model.llm.model.embed_tokens(batch.ids.unsqueeze(0))  # (1, L, D)
    pixels = batch.pixels
    if not len(pixels):
        if not touches_all:
            return text
        side = model.config.vision.image_size
        black = torch.full((1, 3, side, side), -1.0, device=text.device, dtype=text.dtype)
        return text + 0.0 * model.encode_frames(black).sum().to(text.dtype)
    features = torch.cat([*batch_features(model, pixels, batch.tile_rows, batch.media)])  # (p, D)
    return text.index_copy(1, batch.places, features.to(text.dtype).unsqueeze(0))


def batch_features(
    model: Nvila, pixels: Tensor, tile_rows: Tensor, media: tuple[Media, ...]
) -> Iterator[Tensor]:
    """(F, 3, S, S) distinct tiles -> the features (n, D) of each medium, in order."""
    config = model.config
    patches = model.vision_tower(pixels)  # (F, P, C)
    if len(tile_rows) != len(pixels):
        patches = patches[tile_rows]  # (N, P, C)
    per_medium = patches.split([medium.num_tiles for medium in media])
    inputs, shapes = [], []
    for medium, own in zip(media, per_medium, strict=True):
        shape = None
        if medium.block is not None:
            own, shape = merge_scales(own, config.s2_scales, medium.block, config.s2_output_scale)
        elif config.num_scales > 1:
            own = own.repeat(1, 1, config.num_scales)
        inputs.append(own)
        shapes.append(shape)
    projected = model.mm_projector(torch.cat(inputs)).split([len(own) for own in inputs])
    for medium, tokens, shape in zip(media, projected, shapes, strict=True):
        if shape is not None:
            yield stitch(tokens, *shape).flatten(0, 1)
        elif medium.is_video and config.video_pool_sizes:
            pooled = [pool_frames(tokens, size) for size in config.video_pool_sizes]
            yield torch.cat([part.flatten(0, 1) for part in pooled])
        else:
            yield tokens.flatten(0, 1)


def model_dtype(model: Nvila) -> torch.dtype:
    """What pixels are to be for the tower."""
    return model.vision_tower.vision_model.embeddings.patch_embedding.weight.dtype

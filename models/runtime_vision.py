# SPDX-License-Identifier: Apache-2.0
"""The tower and projector as the engine calls them: int8 kernels, or the modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nvila_ros.kernels import vision
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.multiscale import project_scales
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.vision import VisionTower

LEAST_HEAD_WIDTH = 64  # of the attention kernels

Encode = Callable[[Tensor], Tensor]
EncodeTiles = Callable[[Tensor, tuple[int, int]], Tensor]


def make_encoder(
    model: Nvila, max_frames: int, *, releases: bool = False
) -> tuple[Encode, EncodeTiles]:
    """Pixels (F, 3, S, S) -> features (F, T, D), and all tiles of one picture -> (T, D).

    `releases` empties the layers of a tower whose weights were packed.
    """
    config, projector = model.config, model.mm_projector
    tower = _make_tower(model.vision_tower, max_frames)
    if releases and tower is not model.vision_tower:
        model.vision_tower.to("meta")

    def encode(pixels: Tensor) -> Tensor:
        patches = tower(pixels)  # (F, P, C)
        if config.num_scales > 1:
            patches = patches.repeat(1, 1, config.num_scales)
        return projector(patches)

    def encode_tiles(pixels: Tensor, block: tuple[int, int]) -> Tensor:
        patches = torch.cat([tower(part) for part in pixels.split(max_frames)])
        return project_scales(patches, projector, config.s2_scales, block, config.s2_output_scale)

    return encode, encode_tiles


def _make_tower(tower: VisionTower, max_frames: int) -> Encode:
    """The fused kernels where all layers are int8 and the device has them."""
    module = tower.vision_model
    weight = module.embeddings.position_embedding.weight
    layers = cast(Sequence[Any], module.encoder.layers[: tower.num_layers_to_run])
    linears = [
        linear
        for layer in layers
        for linear in (layer.self_attn.q_proj, layer.self_attn.out_proj, layer.mlp.fc1)
    ]
    is_int8 = all(isinstance(linear, W8A8Linear) for linear in linears)
    heads = layers[0].self_attn.num_heads
    # What the kernels compute.
    is_known = layers[0].mlp.approximate == "tanh" and weight.shape[1] // heads >= LEAST_HEAD_WIDTH
    if not (
        is_int8
        and is_known
        and weight.dtype == torch.float16
        and vision.is_available(weight.device)
    ):
        return tower
    blocks = [
        vision.pack_block(
            norm1=layer.layer_norm1,
            query=layer.self_attn.q_proj,
            key=layer.self_attn.k_proj,
            value=layer.self_attn.v_proj,
            out=layer.self_attn.out_proj,
            norm2=layer.layer_norm2,
            fc1=layer.mlp.fc1,
            fc2=layer.mlp.fc2,
        )
        for layer in layers
    ]
    packed = vision.pack_tower(
        patch_embedding=module.embeddings.patch_embedding,
        positions=weight,
        blocks=blocks,
        num_heads=heads,
        eps=layers[0].layer_norm1.eps,
    )
    return vision.VisionEncoder(packed, max_frames).encode

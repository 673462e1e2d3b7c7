# SPDX-License-Identifier: Apache-2.0
"""One user message with its pictures or video to token ids and the feature blocks among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.preprocess import image_tiles, video_pixels
from nvila_ros.models.prompt import IMAGE_TOKEN, user_prompt
from nvila_ros.models.temporal import video_block
from nvila_ros.models.tokenizer import Tokenizer

FRAMES_PER_PASS = 8  # of a video: its frames need not all be in the tower at once


class Network(Protocol):
    """What turns pixels and text into embeddings: an `Nvila`, or an engine made of one."""

    config: NvilaConfig
    newline_token_ids: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where pixels are to be."""

    @property
    def dtype(self) -> torch.dtype:
        """What pixels are to be."""

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) in [-1, 1] -> (F, T, D)."""

    def encode_tiles(self, pixels: Tensor, block: tuple[int, int]) -> Tensor:
        """All tiles of one picture at all scales (N, 3, S, S) -> (T, D)."""

    def embed_text(self, ids: Sequence[int]) -> Tensor:
        """(N,) ids of text -> (N, D)."""


@dataclass(frozen=True)
class FusedInput:
    """Token ids with places for media, and what goes there."""

    input_ids: list[int]
    media: list[Tensor]  # (T, D) per media id


@torch.inference_mode()
def prepare(
    model: Network,
    tokenizer: Tokenizer,
    message: str,
    images: Sequence[Image.Image | np.ndarray] = (),
) -> FusedInput:
    """A user message with one `<image>` per picture -> ids that end where the answer begins.

    User text in the message must have passed `prompt.check_text`.
    """
    config = model.config
    tiles = image_tiles(images, config)
    media: list[Tensor] = []
    if images:
        pixels = tiles.pixels.to(model.device, model.dtype)
        media = (
            [model.encode_tiles(pixels, tiles.block)]
            if tiles.block
            else [*model.encode_frames(pixels)]
        )
    if config.image_aspect_ratio == "dynamic" and len(images) == 1:
        # NVILA-Lite shows every tile as an image of its own, on its own line.
        message = message.replace(IMAGE_TOKEN, f"{IMAGE_TOKEN}\n" * len(media))
    return FusedInput(tokenizer.encode(user_prompt(message.strip(), config.chat_template)), media)


@torch.inference_mode()
def prepare_video(
    model: Network,
    tokenizer: Tokenizer,
    message: str,
    frames: Sequence[Image.Image | np.ndarray],
) -> FusedInput:
    """A user message with one `<vila/video>` -> ids that end where the answer begins.

    User text in the message must have passed `prompt.check_text`.
    """
    config = model.config
    features = []
    for start in range(0, len(frames), FRAMES_PER_PASS):
        batch = [video_pixels(frame, config) for frame in frames[start : start + FRAMES_PER_PASS]]
        pixels = torch.cat(batch).to(model.device, model.dtype)
        features.append(model.encode_frames(pixels))
    newline = model.embed_text(model.newline_token_ids)  # (k, D)
    block = video_block(torch.cat(features), newline, config.video_pool_sizes)
    return FusedInput(tokenizer.encode(user_prompt(message.strip(), config.chat_template)), [block])

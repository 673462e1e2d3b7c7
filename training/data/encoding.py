# SPDX-License-Identifier: Apache-2.0
"""Samples to token ids with the places of features laid out, targets and pixels: before packing.

The ids of a sample are what `Nvila.embed` would fuse for the same conversation, written out: each
place that a feature takes holds the padding id, the newline that ends a block stands as itself.
Only answers and the token that ends each are labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvila_ros.errors import DataError, NvilaError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.preprocess import (
    dynamic_s2_tiles,
    dynamic_tiles,
    pad_to_square,
    resize,
    to_pixels,
)
from nvila_ros.models.prompt import IMAGE_TOKEN, VIDEO_TOKEN, chat_prompt, navigation_prompt
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.video import uniform_indices
from nvila_ros.training.data.sample import ClipFile, Sample, open_frame, shown_frames

IGNORED = -100  # the label of a token that is not learned
# (pictures of one sample, its key) -> pictures of the same sizes
Augment = Callable[[list[Image.Image], str], list[Image.Image]]


@dataclass(frozen=True)
class Media:
    """What stands behind one media token: a run of tiles and how they become features."""

    num_tiles: int
    block: tuple[int, int] | None = None  # rows and columns of dynamic_s2's largest scale
    is_video: bool = False  # frames that are pooled together


@dataclass(frozen=True)
class Encoded:
    """One sample, ready to be packed."""

    key: str
    source: str
    ids: Tensor  # (n,) int64, padding id where a feature stands
    labels: Tensor  # (n,) int64, the id itself where it is learned, else IGNORED
    tiles: Tensor  # (N, 3, S, S) uint8
    media: tuple[Media, ...]  # in the order of the text; their tiles stand in that order in `tiles`
    places: Tensor  # (p,) int64 positions of features in `ids`, in the order of media and tokens
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    sample: Sample,
    tokenizer: Tokenizer,
    config: NvilaConfig,
    *,
    augment: Augment | None = None,
    max_length: int | None = None,
) -> Encoded:
    """Token ids, labels and tiles of a sample; DataError names the row that cannot be used.

    Later turns that exceed `max_length` (default: the decoder's `model_max_length`) are left out.
    """
    limit = config.language.model_max_length if max_length is None else max_length
    try:
        users, pictures, is_video = _shown(sample, tokenizer, config)
        if augment is not None:
            pictures = augment(pictures, sample.key)
        tiles, media = _tiles(pictures, is_video, config)
        users = _one_place_per_media(users, media, is_video, config)
        builder = _Builder(tokenizer, config, media)
        for user, turn in zip(users, sample.turns, strict=True):
            if not builder.add(user, turn.answer.strip(), limit):
                break
        return builder.finish(sample, tiles, limit)
    except DataError as error:
        text = str(error)
        raise error if text.startswith(sample.key) else DataError(f"{sample.key}: {text}") from None
    except NvilaError as error:
        raise DataError(f"{sample.key}: {error}") from None


def pixel_values(tiles: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, 3, S, S) uint8 -> the same in [-1, 1], on the tiles' device, as `to_pixels` rounds."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    table = to_pixels([Image.fromarray(grey)])[0, 0].flatten()
    return table.to(tiles.device, dtype)[tiles.long()]


def feature_runs(media: Media, config: NvilaConfig) -> list[int]:
    """Lengths of the runs of features that a media token becomes; a newline follows each run."""
    side = config.token_grid_side
    if media.block is not None:
        rows, columns = media.block
        if config.s2_output_scale != -1 and config.s2_output_scale < len(config.s2_scales) - 1:
            rows = columns = config.s2_scales[config.s2_output_scale] // config.s2_scales[0]
        return [rows * columns * side * side]
    if not media.is_video:
        return [side * side] * media.num_tiles
    runs: list[int] = []
    for frames, rows, columns in config.video_pool_sizes or ((1, 1, 1),):
        if media.num_tiles % frames or side % rows or side % columns:
            raise DataError(
                f"{media.num_tiles} frames of {side} x {side} tokens cannot be pooled by "
                f"{[frames, rows, columns]}; show a multiple of {frames} frames"
            )
        runs += [(side // rows) * (side // columns)] * (media.num_tiles // frames)
    return runs


def _shown(
    sample: Sample, tokenizer: Tokenizer, config: NvilaConfig
) -> tuple[list[str], list[Image.Image], bool]:
    """The user's texts with their placeholders, the pictures shown, and whether they are one block.

    A navigation sample's user text is the instruction; its prompt is written here.
    """
    users = [turn.user.strip() for turn in sample.turns]
    for text in [*users, *(turn.answer for turn in sample.turns)]:
        _check(text, tokenizer)
    if any(token in turn.answer for turn in sample.turns for token in (IMAGE_TOKEN, VIDEO_TOKEN)):
        raise DataError("an answer holds a media token")
    if sample.kind == "navigation":
        if len(users) != 1 or IMAGE_TOKEN in users[0]:
            raise DataError("a navigation sample has one turn, whose user text is the instruction")
        num_shown = config.num_video_frames
        prompt = navigation_prompt(users[0], num_shown - 1, tokenizer.special_tokens)
        side = config.vision.image_size
        pictures = [
            Image.new("RGB", (side, side)) if frame is None else open_frame(frame)
            for frame in shown_frames(sample.frames, num_shown)
        ]
        return [prompt], pictures, False
    if sample.kind != "video":
        return users, [open_frame(frame) for frame in sample.frames], False
    pictures = _video_frames(sample, config)
    count = sum(user.count(IMAGE_TOKEN) for user in users)
    if count == 1 and len(pictures) > 1:
        lines = f"{IMAGE_TOKEN}\n" * len(pictures)
        users = [user.replace(f"{IMAGE_TOKEN}\n", IMAGE_TOKEN) for user in users]
        users = [user.replace(IMAGE_TOKEN, lines) for user in users]
    return users, pictures, any(VIDEO_TOKEN in user for user in users)


def _video_frames(sample: Sample, config: NvilaConfig) -> list[Image.Image]:
    first = sample.frames[0]
    if isinstance(first, ClipFile):
        return first.clip(config.num_video_frames, config.video_rate_hz)
    indices = uniform_indices(len(sample.frames), config.num_video_frames)
    opened = {index: open_frame(sample.frames[index]) for index in sorted(set(indices))}
    return [opened[index] for index in indices]


def _check(text: str, tokenizer: Tokenizer) -> None:
    """No control token of the tokenizer in a row's text: it would end or begin a turn."""
    for token in tokenizer.special_tokens - {IMAGE_TOKEN, VIDEO_TOKEN}:
        if token in text:
            raise DataError(f"the text holds the control token {token!r}; remove it from the row")


def _tiles(
    pictures: Sequence[Image.Image], is_video: bool, config: NvilaConfig
) -> tuple[Tensor, tuple[Media, ...]]:
    """(N, 3, S, S) uint8 tiles as `models/preprocess.py` cuts them, and what they stand for."""
    side, mode = config.vision.image_size, config.image_aspect_ratio
    if len(pictures) == 1 and not is_video and mode == "dynamic":
        cut = dynamic_tiles(pictures[0], side, config.min_tiles, config.max_tiles)
        return _bytes(cut, side), (Media(1),) * len(cut)
    if len(pictures) == 1 and not is_video and mode == "dynamic_s2":
        cut, block = dynamic_s2_tiles(pictures[0], config.s2_scales, config.max_tiles)
        return _bytes(cut, side), (Media(len(cut), block),)
    if is_video and config.video_max_tiles > 1:
        raise DataError("video_max_tiles above 1 is not trained; set it to 1")
    if mode == "pad":
        pictures = [pad_to_square(picture) for picture in pictures]
    tiles = _bytes([resize(picture, side) for picture in pictures], side)
    return tiles, (Media(len(tiles), is_video=True),) if is_video else (Media(1),) * len(tiles)


def _bytes(pictures: Sequence[Image.Image], side: int) -> Tensor:
    if not pictures:
        return torch.empty(0, 3, side, side, dtype=torch.uint8)
    stacked = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stacked))


def _one_place_per_media(
    users: list[str], media: Sequence[Media], is_video: bool, config: NvilaConfig
) -> list[str]:
    """Texts with as many placeholders as media; NVILA-Lite shows each tile on its own line."""
    places = sum(user.count(IMAGE_TOKEN) + user.count(VIDEO_TOKEN) for user in users)
    if config.image_aspect_ratio == "dynamic" and places == 1 and not is_video and len(media) > 0:
        # As `models/inputs.py` does for one picture: its lone tile gets a line too.
        lines = f"{IMAGE_TOKEN}\n" * len(media)
        return [user.replace(IMAGE_TOKEN, lines) for user in users]
    if places != len(media):
        raise DataError(
            f"the text has {places} places for pictures, {len(media)} are given; "
            f"write one {IMAGE_TOKEN} per picture"
        )
    return users


class _Builder:
    """Lays turns out one after another."""

    def __init__(self, tokenizer: Tokenizer, config: NvilaConfig, media: tuple[Media, ...]) -> None:
        self.tokenizer, self.config, self.media = tokenizer, config, media
        end = "<|im_end|>" if config.chat_template == "qwen2" else "<|eot_id|>"
        self.end_text, self.end_id = end, tokenizer.id(end)
        self.pad_id = min(tokenizer.padding_and_end_ids)
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.places: list[int] = []
        self.num_media = 0

    def add(self, user: str, answer: str, limit: int) -> bool:
        """One turn; False where it does not fit any more."""
        if not answer:
            raise DataError("an answer is empty")
        before = len(self.ids), len(self.places), self.num_media
        template = self.config.chat_template
        if not self.ids:
            asked = chat_prompt([("user", user)], template)
        else:  # what the template puts between the end token and the next answer
            said = [("user", ""), ("assistant", "")]
            whole = chat_prompt(said, template, add_generation_prompt=False)
            tail = whole[whole.rindex(self.end_text) + len(self.end_text) :]
            asked = tail + chat_prompt([*said, ("user", user)], template)[len(whole) :]
        self._expand(self.tokenizer.encode(asked))
        answered = [*self.tokenizer.encode(answer), self.end_id]
        self.labels += [IGNORED] * (len(self.ids) - len(self.labels)) + answered
        self.ids += answered
        if len(self.ids) <= limit:
            return True
        del self.ids[before[0] :], self.labels[before[0] :], self.places[before[1] :]
        self.num_media = before[2]
        return False

    def _expand(self, ids: Sequence[int]) -> None:
        media_ids = {self.tokenizer.image_id, self.tokenizer.video_id}
        skipped = (
            self.tokenizer.padding_and_end_ids if self.config.skips_end_after_media else frozenset()
        )
        newline = self.tokenizer.encode(self.config.frame_end_text)
        follows_media = False
        for token in ids:
            if token in media_ids:
                for length in feature_runs(self.media[self.num_media], self.config):
                    self.places += range(len(self.ids), len(self.ids) + length)
                    self.ids += [self.pad_id] * length + newline
                self.num_media += 1
            elif not (follows_media and token in skipped):
                self.ids.append(token)
            follows_media = token in media_ids

    def finish(self, sample: Sample, tiles: Tensor, limit: int) -> Encoded:
        if not self.ids:
            raise DataError(f"the first turn exceeds {limit} tokens; shorten it or its pictures")
        if self.num_media != len(self.media):
            raise DataError(
                f"pictures stand in turns beyond the first {limit} tokens; put them first"
            )
        return Encoded(
            key=sample.key,
            source=sample.source,
            ids=torch.tensor(self.ids),
            labels=torch.tensor(self.labels),
            tiles=tiles,
            media=self.media,
            places=torch.tensor(self.places, dtype=torch.long),
            weight=sample.weight,
        )

# SPDX-License-Identifier: Apache-2.0
"""One training sample, whatever it was read from: pictures, turns of text, where it came from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from PIL import Image

from nvila_ros.errors import DataError
from nvila_ros.models.preprocess import to_image

Kind = Literal["image", "video", "navigation", "text"]
KINDS: tuple[Kind, ...] = ("image", "video", "navigation", "text")


class LazyFrame(Protocol):
    """A picture that is opened when it is needed; must be picklable."""

    def load(self) -> Image.Image:
        """The RGB picture; raises DataError where there is none."""


Frame: TypeAlias = "Image.Image | np.ndarray | LazyFrame"  # arrays are (H, W, 3) uint8 RGB


def _decoded(source: Path | io.BytesIO, name: object) -> Image.Image:
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except Exception as error:  # on a broken file PIL's decoders raise whatever they meet
        raise DataError(f"{name} is no readable picture ({error})") from None


@dataclass(frozen=True)
class FrameFile:
    """A picture in a file."""

    path: Path

    def load(self) -> Image.Image:
        """The RGB picture."""
        return _decoded(self.path, self.path)


@dataclass(frozen=True)
class FrameBytes:
    """An encoded picture (JPEG, PNG, WebP) in memory, as a shard holds it."""

    content: bytes
    name: str = "picture"

    def load(self) -> Image.Image:
        """The RGB picture."""
        return _decoded(io.BytesIO(self.content), self.name)


@dataclass(frozen=True)
class ClipFile:
    """A video file or a folder of frames: stands as the only entry of `Sample.frames`."""

    path: Path

    def load(self) -> Image.Image:
        """The first frame, for picture sheets."""
        return self.clip(1)[0]

    def clip(self, num_frames: int, rate_hz: float = 0.0) -> list[Image.Image]:
        """`num_frames` spread evenly, or with a rate the first of them (`models/video.py`)."""
        from nvila_ros.errors import ImageError
        from nvila_ros.models.video import read_clip

        try:
            return list(read_clip(self.path, num_frames, rate_hz).frames)
        except ImageError as error:
            raise DataError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the user says and what the model is to answer; `<image>` stands for one frame.

    A video's place is `<vila/video>`, once, and takes all frames. Only `answer` is learned.
    """

    user: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample; `frames` in the order of their places in the text.

    navigation: `frames` is everything seen so far, the current frame last; `encode` shows
    `config.num_video_frames` of it as the policy would, black frames in front of a short history.
    """

    key: str  # unique within its source; names the row in errors and scores
    source: str  # name of the subset, for mixtures, pruning and reports
    kind: Kind
    frames: tuple[Frame, ...]
    turns: tuple[Turn, ...]
    weight: float = 1.0  # of the sample's targets in the loss
    duration_s: float | None = None  # of the video, where answers name times by time tokens
    time_spans_s: tuple[tuple[float, float], ...] = ()  # true spans, for the IoU
    group: str | None = None  # samples of one episode that share frames are stored together

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"{self.key}: kind is {self.kind!r}, one of {KINDS} is expected")
        if not self.turns:
            raise DataError(f"{self.key}: no turns; a question and an answer are expected")
        if self.kind == "text" and self.frames:
            raise DataError(f"{self.key}: a text sample has {len(self.frames)} frames")
        if self.kind != "text" and not self.frames:
            raise DataError(f"{self.key}: the row has no frames; at least one is expected")


def open_frame(frame: Frame) -> Image.Image:
    """The RGB picture behind any form of a frame."""
    if isinstance(frame, (Image.Image, np.ndarray)):
        return to_image(frame)
    return frame.load()


def shown_indices(num_seen: int, num_shown: int) -> list[int | None]:
    """Which of the frames seen so far a navigation prompt shows; None stands for black.

    NaVILA's rule: uniform over everything before the current frame, frame 0 always among them, then
    the current one; black in front of a short history. Equals `FrameHistory.select` for a history
    that was never thinned; a list that was selected once is selected as it is.
    """
    if num_seen <= num_shown:
        return [None] * (num_shown - num_seen) + list(range(num_seen))
    past = np.linspace(0, num_seen - 1, num=num_shown - 1, endpoint=False, dtype=int)
    return [*(int(index) for index in past), num_seen - 1]


def shown_frames(frames: Sequence[Frame], num_shown: int) -> list[Frame | None]:
    """The frames of `shown_indices`."""
    return [
        None if index is None else frames[index] for index in shown_indices(len(frames), num_shown)
    ]

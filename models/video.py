# SPDX-License-Identifier: Apache-2.0
"""Video files and folders of frames to the few frames that a question about them shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nvila_ros.errors import ConfigError, ImageError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# How a picture is turned upright, by the counter-clockwise angle that its file asks for.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Clip:
    """Frames of one video, in order of time."""

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]  # of each frame in the video
    num_video_frames: int  # of the whole video
    duration_s: float | None  # None for a folder of frames


def uniform_indices(num_video_frames: int, num_frames: int) -> list[int]:
    """Spread evenly from the first to the last; a short video's frames repeat."""
    spread = np.linspace(0, num_video_frames - 1, num_frames)
    return [int(index) for index in np.round(spread)]


def rate_indices(
    num_video_frames: int, video_rate_hz: float, rate_hz: float, num_frames: int
) -> list[int]:
    """One frame per 1 / `rate_hz` seconds from the start on, at most `num_frames` of them."""
    times_s = np.arange(0, num_video_frames / video_rate_hz, 1 / rate_hz)[:num_frames]
    return [min(int(time_s * video_rate_hz), num_video_frames - 1) for time_s in times_s]


def read_clip(path: Path | str, num_frames: int, rate_hz: float = 0.0) -> Clip:
    """Sample `num_frames` evenly, or with a rate the first of them, from a file or a folder."""
    if num_frames < 1 or not np.isfinite(rate_hz) or rate_hz < 0:
        raise ConfigError(
            f"got {num_frames} frames at {rate_hz} per second; "
            "at least one frame and a rate of 0 (spread evenly) or more are expected"
        )
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, num_frames, rate_hz)
    if not path.exists():
        raise ImageError(f"{path} does not exist; give a video file or a folder of frames")
    return _read_file(path, num_frames, rate_hz)


def _read_folder(folder: Path, num_frames: int, rate_hz: float) -> Clip:
    """Pictures in the order of their names."""
    if rate_hz:
        raise ConfigError(f"{folder} is a folder of frames, which has no rate; leave out the rate")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise ImageError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)})")
    indices = uniform_indices(len(paths), num_frames)
    pictures = {}
    for index in set(indices):
        try:
            with Image.open(paths[index]) as image:
                pictures[index] = image.convert("RGB")
        except OSError as error:
            raise ImageError(f"{paths[index]} is no readable picture ({error})") from None
    return Clip(tuple(pictures[index] for index in indices), tuple(indices), len(paths), None)


def _read_file(path: Path, num_frames: int, rate_hz: float) -> Clip:
    """Decode up to the last frame that is wanted; a header that promises too much is corrected."""
    count, video_rate_hz = _promised(path)
    while count:
        indices = (
            rate_indices(count, video_rate_hz, rate_hz, num_frames)
            if rate_hz
            else uniform_indices(count, num_frames)
        )
        pictures, num_decoded = _decode(path, indices)
        if num_decoded > max(indices):
            frames = tuple(pictures[index] for index in indices)
            return Clip(frames, tuple(indices), count, count / video_rate_hz)
        count = num_decoded
    raise ImageError(f"{path} has no frame that can be decoded; give another video")


def _promised(path: Path) -> tuple[int, float]:
    """How many frames the file says it has, counted where it says nothing, and its rate in Hz."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError(f"{path} has no video stream; give a video file")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            count = stream.frames
    except (av.FFmpegError, OSError) as error:
        raise ImageError(f"{path} is no readable video ({error}); give MP4 or another") from None
    if not rate:
        raise ImageError(f"{path} does not say how fast it plays; write it again with a frame rate")
    return count or sum(1 for _ in _decoded(path)), float(rate)


def _decode(path: Path, indices: Sequence[int]) -> tuple[dict[int, Image.Image], int]:
    """The wanted pictures that could be decoded, and how many frames were passed on the way."""
    wanted = set(indices)
    pictures: dict[int, Image.Image] = {}
    num_decoded = 0
    for number, frame in enumerate(_decoded(path)):
        num_decoded = number + 1
        if number in wanted:
            pictures[number] = upright(frame.to_image(), getattr(frame, "rotation", 0))
            if len(pictures) == len(wanted):
                break
    return pictures, num_decoded


def _decoded(path: Path) -> Iterator:
    """All frames of a file up to the first that is broken."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            yield from container.decode(stream)
        except av.FFmpegError:
            return


def upright(image: Image.Image, angle_deg: int) -> Image.Image:
    """Turn a picture counter-clockwise by a quarter turn or several, as a phone's video asks."""
    turn = _TURNS.get(angle_deg % 360)
    return image if turn is None else image.transpose(turn)

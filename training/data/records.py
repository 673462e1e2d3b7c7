# SPDX-License-Identifier: Apache-2.0
"""The record of a shard: samples that share frames as one json and numbered pictures, both ways.

A record is `<key>.json` followed by `<key>.0000.jpg`, `<key>.0001.jpg`, ... (or png, webp):

    {"num_frames": 12, "samples": [{"key": ..., "source": ..., "kind": ..., "frames": [0, 3, 7],
      "turns": [[user, answer], ...], "weight": 1.0, "duration_s": null, "time_spans_s": []}]}

Records of others are read too: a json with LLaVA's `conversations` beside its pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from nvila_ros.errors import DataError
from nvila_ros.training.data.conversations import conversation_sample
from nvila_ros.training.data.sample import (
    ClipFile,
    Frame,
    FrameBytes,
    FrameFile,
    Sample,
    Turn,
    open_frame,
)

PICTURE_TYPES = {"jpg", "jpeg", "png", "webp", "bmp"}
Files = dict[str, bytes]  # extension with its number, such as 'json' and '0003.jpg' -> content


def record_of(samples: Sequence[Sample], *, quality: int = 92, clip_frames: int = 32) -> Files:
    """The files of one record; equal pictures are stored once, encoded ones as they are."""
    files: Files = {"json": b""}
    numbers: dict[Any, int] = {}
    rows = []
    for sample in samples:
        frames: list[Frame] = [*sample.frames]
        if isinstance(frames[0] if frames else None, ClipFile):
            frames = [*sample.frames[0].clip(clip_frames)]  # type: ignore[union-attr]
        indices = []
        for frame in frames:
            identity = frame if isinstance(frame, (FrameFile, FrameBytes)) else id(frame)
            if identity not in numbers:
                suffix, picture = _encoded(frame, quality)
                numbers[identity] = len(numbers)
                files[f"{numbers[identity]:04d}.{suffix}"] = picture
            indices.append(numbers[identity])
        rows.append(_row(sample, indices))
    content = {"num_frames": len(numbers), "samples": rows}
    files["json"] = json.dumps(content, ensure_ascii=False).encode()
    return files


def samples_of(files: Files, key: str, where: str, source: str) -> list[Sample]:
    """The samples of a record; DataError where a file is missing or malformed."""
    if "json" not in files:
        raise DataError(f"record {key} has no json, only {sorted(files)}")
    try:
        content = json.loads(files["json"])
    except ValueError as error:
        raise DataError(f"record {key}: its json cannot be read ({error})") from None
    names = sorted(name for name in files if name.rpartition(".")[2] in PICTURE_TYPES)
    pictures = [FrameBytes(files[name], f"{where}:{key}.{name}") for name in names]
    if not isinstance(content, dict):
        raise DataError(f"record {key}: its json is no object")
    if "samples" not in content:
        return [conversation_sample(content, key, source, pictures)]
    if len(pictures) != content.get("num_frames"):
        raise DataError(
            f"record {key} has {len(pictures)} pictures, its json promises "
            f"{content.get('num_frames')}; the shard is cut or was changed"
        )
    try:
        return [_sample(row, pictures, key) for row in content["samples"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"record {key} is malformed ({error!r})") from None


def _row(sample: Sample, indices: list[int]) -> dict[str, Any]:
    return {
        "key": sample.key,
        "source": sample.source,
        "kind": sample.kind,
        "frames": indices,
        "turns": [[turn.user, turn.answer] for turn in sample.turns],
        "weight": sample.weight,
        "duration_s": sample.duration_s,
        "time_spans_s": [list(span) for span in sample.time_spans_s],
        "group": sample.group,
    }


def _sample(row: dict[str, Any], pictures: Sequence[FrameBytes], key: str) -> Sample:
    return Sample(
        key=str(row["key"]),
        source=str(row["source"]),
        kind=row["kind"],
        frames=tuple(pictures[index] for index in row["frames"]),
        turns=tuple(Turn(user=user, answer=answer) for user, answer in row["turns"]),
        weight=float(row.get("weight", 1.0)),
        duration_s=row.get("duration_s"),
        time_spans_s=tuple((float(a), float(b)) for a, b in row.get("time_spans_s", ())),
        group=row.get("group"),
    )


def _encoded(frame: Frame, quality: int) -> tuple[str, bytes]:
    """(suffix, content) of a picture; what is encoded already is checked and kept."""
    content: bytes | None = None
    if isinstance(frame, FrameBytes):
        content = frame.content
    elif isinstance(frame, FrameFile):
        try:
            content = frame.path.read_bytes()
        except OSError as error:
            raise DataError(f"{frame.path} cannot be read ({error.strerror})") from None
    if content is not None:
        image_format = _format(content)
        open_frame(frame)  # a broken picture is not stored
        if image_format in PICTURE_TYPES:
            return image_format, content
    buffer = io.BytesIO()
    open_frame(frame).save(buffer, "JPEG", quality=quality)
    return "jpg", buffer.getvalue()


def _format(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return (image.format or "").lower().replace("jpeg", "jpg")
    except Exception as error:  # on a broken file PIL's decoders raise whatever they meet
        raise DataError(f"a picture cannot be read ({error})") from None

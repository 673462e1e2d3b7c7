# SPDX-License-Identifier: Apache-2.0
"""LLaVA's rows: a picture, several or a video, and a conversation about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvila_ros.errors import DataError
from nvila_ros.models.prompt import IMAGE_TOKEN, VIDEO_TOKEN
from nvila_ros.training.data.sample import ClipFile, Frame, FrameFile, Kind, Sample, Turn

_MARKERS = re.compile(r"[ \t]*<(?:image|video|vila/video)>[ \t]*\n?")
_USER_ROLES, _ANSWER_ROLES = ("human", "user"), ("gpt", "assistant")


def conversation_sample(
    row: dict[str, Any],
    key: str,
    source: str,
    pictures: Sequence[Frame] | None = None,
    folder: Path = Path(),
) -> Sample:
    """A row with `conversations` and `image` (name or names) or `video`, or none for text.

    `pictures` replace the files that the row names. As in the reference, all media stand at the
    start of the first message, whatever place their markers had.
    """
    frames: tuple[Frame, ...] = tuple(pictures or ())
    is_video = bool(row.get("video"))
    if not frames and is_video:
        frames = (ClipFile(folder / str(row["video"])),)
    elif not frames and row.get("image"):
        names = row["image"] if isinstance(row["image"], list) else [row["image"]]
        frames = tuple(FrameFile(folder / str(name)) for name in names)
    texts = _texts(row, key)
    marked = sum(len(_MARKERS.findall(user)) for user, _ in texts)
    if marked and not frames:
        raise DataError(f"{key}: the text asks for {marked} pictures, the row names none")
    media = VIDEO_TOKEN if is_video else IMAGE_TOKEN * len(frames)
    kind: Kind = "video" if is_video else "image" if frames else "text"
    turns = [
        Turn(
            user=(media if number == 0 else "") + _MARKERS.sub("", user).strip(),
            answer=answer.strip(),
        )
        for number, (user, answer) in enumerate(texts)
    ]
    duration_s = row.get("duration") or row.get("duration_s")
    return Sample(
        key=key,
        source=source,
        kind=kind,
        frames=frames,
        turns=tuple(turns),
        duration_s=None if duration_s is None else float(duration_s),
    )


def _texts(row: dict[str, Any], key: str) -> list[tuple[str, str]]:
    """(user, answer) pairs; a conversation alternates and ends with an answer."""
    messages = row.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{key}: the row has no 'conversations'; a list of messages is expected")
    try:
        said = [
            (
                str(message.get("from", message.get("role"))),
                message.get("value", message.get("content")),
            )
            for message in messages
        ]
    except AttributeError:
        raise DataError(f"{key}: a message is no object with 'from' and 'value'") from None
    if said[0][0] == "system":
        said = said[1:]
    pairs = []
    for number, (role, text) in enumerate(said):
        expected = _ANSWER_ROLES if number % 2 else _USER_ROLES
        if role not in expected or not isinstance(text, str):
            raise DataError(
                f"{key}: message {number} is from {role!r}, {expected[0]!r} is expected; "
                "users and answers alternate"
            )
        if number % 2:
            pairs.append((said[number - 1][1], text))
    if len(said) % 2 or not pairs:
        raise DataError(f"{key}: the conversation does not end with an answer")
    return pairs

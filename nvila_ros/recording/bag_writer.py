# SPDX-License-Identifier: Apache-2.0
"""Writes an MCAP file of serialised ROS 2 messages, readable up to its last chunk if cut short."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvila_ros.errors import DataError, install_hint

# What a power cut may cost. Pictures do not shrink further, so compression is a quick one.
CHUNK_BYTES = 256 * 1024
_BUILT_IN = {
    *("bool", "byte", "char", "float32", "float64", "string", "wstring"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


class BagWriter:
    """One file; messages come serialised (CDR), their definitions from the installed packages."""

    def __init__(self, path: Path) -> None:
        writer = mcap_module("mcap.writer")
        if path.exists():
            raise DataError(f"{path} exists; recordings are not overwritten, give another name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror})") from None
        self._writer = writer.Writer(
            self._file, chunk_size=CHUNK_BYTES, compression=writer.CompressionType.LZ4
        )
        self._writer.start(profile="ros2", library="nvila_ros")
        self._schemas: dict[str, int] = {}
        self._channels: dict[tuple[str, str], int] = {}
        self._sequence: dict[int, int] = {}
        self.num_messages: dict[str, int] = {}

    def write(self, topic: str, datatype: str, content: bytes, log_ns: int) -> None:
        """One message; `datatype` as in 'sensor_msgs/msg/CompressedImage'."""
        key = (topic, datatype)
        if key not in self._channels:
            self._channels[key] = self._add_channel(topic, datatype)
        channel = self._channels[key]
        sequence = self._sequence.get(channel, 0)
        self._sequence[channel] = sequence + 1
        self._writer.add_message(
            channel_id=channel,
            log_time=log_ns,
            publish_time=log_ns,
            sequence=sequence,
            data=content,
        )
        self.num_messages[topic] = self.num_messages.get(topic, 0) + 1

    def flush(self) -> None:
        """Hands whole chunks to the system."""
        self._file.flush()

    def close(self) -> None:
        """Writes index and summary; a file without them is read all the same."""
        if not self._file.closed:
            self._writer.finish()
            self._file.close()

    def _add_channel(self, topic: str, datatype: str) -> int:
        if datatype not in self._schemas:
            definition = message_definition(datatype, share_folders())
            self._schemas[datatype] = self._writer.register_schema(
                name=datatype, encoding="ros2msg", data=definition.encode()
            )
        return int(self._writer.register_channel(topic, "cdr", self._schemas[datatype]))


def mcap_module(name: str) -> Any:
    """A module of the MCAP libraries; DataError names the extra that brings them."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"recordings need the MCAP libraries ({error}); {install_hint('record')}"
        ) from None


def share_folders() -> list[Path]:
    """Where message packages lie: the sourced ROS 2, or pip's wheels."""
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))]
    return [Path(prefix) / "share" for prefix in [*prefixes, sys.prefix]]


def message_definition(datatype: str, folders: Iterable[Path]) -> str:
    """The text of a message and of all that it is made of, as MCAP's `ros2msg` wants it."""
    folders = list(folders)
    main = _short(datatype)
    parts, waiting, seen = [], [main], {main}
    while waiting:
        name = waiting.pop(0)
        text = _definition_file(name, folders)
        parts.append(text if name == main else f"MSG: {name}\n{text}")
        for needed in _needed_types(text, name.split("/")[0]):
            if needed not in seen:
                seen.add(needed)
                waiting.append(needed)
    return ("\n" + "=" * 80 + "\n").join(parts)


def _definition_file(name: str, folders: list[Path]) -> str:
    package, kind = name.split("/")
    for folder in folders:
        file = folder / package / "msg" / f"{kind}.msg"
        if file.is_file():
            return file.read_text(encoding="utf-8").rstrip() + "\n"
    raise DataError(
        f"the definition of {name} was not found in {', '.join(map(str, folders))}; "
        f"source the workspace that has {package}"
    )


def _needed_types(text: str, package: str) -> list[str]:
    """Message types among the fields, with their packages."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) < 2 or "=" in words[1]:
            continue
        kind = re.sub(r"(\[.*\])$", "", words[0])
        kind = re.sub(r"<=\d+$", "", kind)
        if kind not in _BUILT_IN:
            found.append(_short(kind) if "/" in kind else f"{package}/{kind}")
    return found


def _short(datatype: str) -> str:
    """'sensor_msgs/msg/Image' -> 'sensor_msgs/Image'."""
    parts = datatype.split("/")
    return f"{parts[0]}/{parts[-1]}"

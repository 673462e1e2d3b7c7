# SPDX-License-Identifier: Apache-2.0
"""Reads a recording without ROS: our topics by type and name, as far as the file goes.

Small messages are held in memory; pictures are streamed from the file each time they are asked for.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import DataError
from nvila_ros.recording.bag_messages import Picture, Said, picture_of, pose_row, said_of
from nvila_ros.recording.bag_writer import mcap_module

_LOG = logging.getLogger(__name__)
_NANOSECONDS = 1e-9
_PICTURES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")
_STRING, _ODOMETRY = "std_msgs/msg/String", "nav_msgs/msg/Odometry"


@dataclass(frozen=True)
class BagTopics:
    """Names of the topics to use; None is found by type and ending."""

    image: str | None = None
    odometry: str | None = None
    instruction: str | None = None
    decision: str | None = None
    state: str | None = None


@dataclass
class Recording:
    """What a bag holds beside its pictures."""

    path: Path
    topics: dict[str, str]  # role -> topic
    poses: np.ndarray  # (N, 5) float64: log_s, stamp_s, x_m, y_m, yaw_rad, unwrapped
    instructions: list[Said]
    decisions: list[Said]
    states: list[Said]
    num_images: int
    duration_s: float
    cut: str = ""  # why the file ends before its end, or ''

    def pose_at(self, stamp_s: float) -> tuple[float, float, float]:
        """x, y, yaw between the two nearest messages of odometry."""
        stamps = self.poses[:, 1]
        return tuple(float(np.interp(stamp_s, stamps, self.poses[:, n])) for n in (2, 3, 4))  # type: ignore[return-value]

    def pictures(self) -> Iterator[Picture]:
        """Every camera image in the order of the file."""
        topic = self.topics["image"]
        for log_s, _, message in _messages(self.path, {topic}, []):
            yield picture_of(log_s, message)


def read_recording(path: Path, topics: BagTopics | None = None) -> Recording:
    """A .mcap file or a rosbag2 folder with one; DataError without camera or odometry.

    What comes before the cut of a truncated file is used, and a warning says so.
    """
    file = mcap_file(path)
    types = _topic_types(file)
    chosen = _choose(types, topics or BagTopics(), path)
    cut: list[str] = []
    poses, said = [], {"instruction": [], "decision": [], "state": []}  # type: ignore[var-annotated]
    role_of = {topic: role for role, topic in chosen.items()}
    num_images, first_s, last_s = 0, math.inf, -math.inf
    for log_s, topic, message in _messages(file, set(role_of), cut):
        role = role_of[topic]
        first_s, last_s = min(first_s, log_s), max(last_s, log_s)
        if role == "image":
            num_images += 1
        elif role == "odometry":
            poses.append(pose_row(log_s, message))
        else:
            said[role].append(said_of(log_s, message.data, is_json=role != "instruction"))
    if cut:
        _LOG.warning("%s is cut short (%s); what comes before is used", file, cut[0])
    if not poses or not num_images:
        raise DataError(
            f"{file} holds {num_images} images on {chosen['image']} and {len(poses)} poses on "
            f"{chosen['odometry']}; both are needed. {cut[0] if cut else ''}".strip()
        )
    rows = np.array(poses)
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    rows[:, 4] = np.unwrap(rows[:, 4])
    return Recording(
        path=file,
        topics=chosen,
        poses=rows,
        instructions=said["instruction"],
        decisions=said["decision"],
        states=said["state"],
        num_images=num_images,
        duration_s=max(0.0, last_s - first_s),
        cut=cut[0] if cut else "",
    )


def mcap_file(path: Path) -> Path:
    """The file of a recording; DataError says what to give or to convert."""
    if path.is_dir():
        files = sorted(path.glob("*.mcap"))
        if len(files) == 1:
            return files[0]
        if files:
            raise DataError(f"{path} holds {len(files)} .mcap files; give one of them")
        if list(path.glob("*.db3*")):
            raise DataError(
                f"{path} is a bag in SQLite form; convert it first: ros2 bag convert -i {path} "
                "-o <options with storage_id: mcap>"
            )
        raise DataError(f"{path} holds no .mcap file; give one, or the folder of a bag")
    if not path.is_file():
        raise DataError(f"{path} does not exist; give an .mcap file, or the folder of a bag")
    if path.suffix == ".db3":
        raise DataError(f"{path} is a bag in SQLite form; convert it to MCAP: ros2 bag convert")
    return path


def _topic_types(file: Path) -> dict[str, str]:
    """Topic -> type of every channel that can be reached."""
    records = mcap_module("mcap.records")
    schemas: dict[int, str] = {}
    types: dict[str, str] = {}
    for record in _records(file, []):
        if isinstance(record, records.Schema):
            schemas[record.id] = record.name
        elif isinstance(record, records.Channel):
            types[record.topic] = schemas.get(record.schema_id, "unknown")
    return types


def _choose(types: dict[str, str], wanted: BagTopics, path: Path) -> dict[str, str]:
    """Role -> topic; those of the camera and of odometry must be there and be clear."""
    pictures = [topic for kind in _PICTURES for topic, name in types.items() if name == kind]
    pictures = [topic for topic in pictures if not topic.endswith("history/compressed")]
    found = {
        "image": pictures,
        "odometry": [topic for topic, name in types.items() if name == _ODOMETRY],
    }
    for role in ("instruction", "decision", "state"):
        found[role] = [
            topic for topic, name in types.items() if name == _STRING and topic.endswith(role)
        ]
    listing = ", ".join(f"{topic} ({name})" for topic, name in sorted(types.items()))
    listing = listing or "nothing that can be read: it is empty or was cut at its beginning"
    chosen = {}
    for role, candidates in found.items():
        given = getattr(wanted, role)
        if given is not None:
            if given not in types:
                raise DataError(f"{path} has no topic {given}; it holds {listing}")
            chosen[role] = given
        elif candidates:
            chosen[role] = candidates[0]
            if len(candidates) > 1 and role in ("image", "odometry"):
                _LOG.warning("of %s %s is taken", " and ".join(candidates), candidates[0])
        elif role in ("image", "odometry"):
            raise DataError(
                f"{path} has no topic with {'images' if role == 'image' else 'odometry'}; it holds "
                f"{listing}. Record with `nvila record`, or with ros2 bag record -s mcap"
            )
    return chosen


def _messages(file: Path, topics: set[str], cut: list[str]) -> Iterator[tuple[float, str, Any]]:
    """(log_s, topic, decoded message) in the order of the file; `cut` hears of an early end."""
    records = mcap_module("mcap.records")
    factory = mcap_module("mcap_ros2.decoder").DecoderFactory()
    schemas: dict[int, Any] = {}
    channels: dict[int, Any] = {}
    for record in _records(file, cut):
        if isinstance(record, records.Schema):
            schemas[record.id] = record
        elif isinstance(record, records.Channel):
            channels[record.id] = record
        elif isinstance(record, records.Message):
            channel = channels[record.channel_id]
            if channel.topic not in topics:
                continue
            schema = schemas.get(channel.schema_id)
            decode = factory.decoder_for(channel.message_encoding, schema)
            if decode is None:
                raise DataError(
                    f"{file}: {channel.topic} is written as {channel.message_encoding} with a "
                    f"schema in {getattr(schema, 'encoding', 'no form')}; cdr with ros2msg is "
                    "expected"
                )
            try:
                message = decode(record.data)
            except (struct.error, ValueError, IndexError) as error:
                _LOG.warning("a message on %s cannot be read (%s)", channel.topic, error)
                continue
            yield record.log_time * _NANOSECONDS, channel.topic, message


def _records(file: Path, cut: list[str]) -> Iterator[Any]:
    """Every record until the end or the cut; DataError where not even the beginning is MCAP."""
    reader = mcap_module("mcap.stream_reader")
    exceptions = mcap_module("mcap.exceptions")
    with file.open("rb") as stream:
        records = iter(reader.StreamReader(stream, record_size_limit=2**30).records)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except exceptions.InvalidMagic:
                if stream.tell() <= 8:
                    raise DataError(f"{file} is no MCAP file") from None
                cut.append("its last bytes are missing")
                return
            except (exceptions.McapError, struct.error, ValueError, RuntimeError) as error:
                if stream.tell() <= 8:
                    raise DataError(f"{file} is empty or no MCAP file ({error})") from None
                cut.append(f"{type(error).__name__} after {stream.tell()} bytes")
                return
            except Exception as error:
                if type(error).__module__.split(".")[0] not in ("zstandard", "lz4"):
                    raise
                cut.append(f"a damaged chunk before byte {stream.tell()}")
                return
            yield record

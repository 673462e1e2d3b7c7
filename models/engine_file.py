# SPDX-License-Identifier: Apache-2.0
"""Files of built engines: what each was built from and for, checked before it is used."""

from __future__ import annotations

import hashlib
import json
import shlex
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nvila_ros.errors import ExportError

MAGIC = b"NVILAENG"
HEADER = struct.Struct("<8sI")
MAX_DESCRIPTION_BYTES = 1 << 16
FOLDER = "vision_engine"  # inside a checkpoint's folder, where engines are looked for


@dataclass(frozen=True)
class Description:
    """What stands in front of an engine's bytes."""

    library: str  # tensorrt_rtx or tensorrt
    version: str
    fingerprint: str  # of the checkpoint's tower and projector
    precision: str  # fp16, int8 or fp32
    gpus: tuple[str, ...]  # sm89 ...: what it runs on
    max_frames: int
    num_bytes: int = 0
    sha256: str = ""
    float_layers: str = ""  # of an int8 tower, as --float-layers takes them

    def command(self, model: Path | str = "MODEL") -> str:
        """What builds this engine anew."""
        engine = self.library.replace("_", "-")
        gpus = f" --gpu {','.join(self.gpus)}" if self.gpus else ""
        floats = f" --float-layers {self.float_layers}" if self.float_layers else ""
        return (
            f"nvila export {shlex.quote(str(model))} --part vision --precision {self.precision} "
            f"--engine {engine}{gpus}{floats} --frames 1,{self.max_frames}"
        )


def write_engine(path: Path, description: Description, engine: bytes) -> Description:
    """Writes the file as a whole or not at all; returns the description with size and hash."""
    complete = Description(
        **{
            **asdict(description),
            "num_bytes": len(engine),
            "sha256": hashlib.sha256(engine).hexdigest(),
        }
    )
    text = json.dumps(asdict(complete)).encode()
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(HEADER.pack(MAGIC, len(text)) + text)
            file.write(engine)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(
            f"cannot write {path}: {error.strerror or error}; it needs {len(engine) / 1e6:.0f} MB, "
            "free some or choose another --out"
        ) from error
    return complete


def read_description(path: Path) -> Description:
    """What an engine file says of itself; ExportError for anything else."""
    with _opened(path) as file:
        return _read_header(path, file.read(HEADER.size + MAX_DESCRIPTION_BYTES))[0]


def read_engine(
    path: Path, *, fingerprint: str, library: str, version: str, gpu: str, model: Path | str
) -> tuple[Description, bytes]:
    """The engine's bytes; ExportError, with the command that rebuilds it, where it does not fit."""
    with _opened(path) as file:
        content = file.read()
    description, begin = _read_header(path, content)
    engine = content[begin:]
    rebuild = f"build it anew: {description.command(model)}"
    problems: Sequence[tuple[str, str, str]] = (
        ("checkpoint", description.fingerprint, fingerprint),
        ("library", description.library, library),
        ("version of it", description.version, version),
    )
    for what, got, expected in problems:
        if got != expected:
            raise ExportError(f"{path}: {what} is {got}, here it is {expected}; {rebuild}")
    if gpu not in description.gpus:
        here = Description(**{**asdict(description), "gpus": (gpu,)})
        raise ExportError(
            f"{path} is built for {', '.join(description.gpus)}, this GPU is {gpu}; "
            f"build it for this one: {here.command(model)}"
        )
    if len(engine) != description.num_bytes:
        raise ExportError(
            f"{path} is cut short: {len(engine)} of {description.num_bytes} bytes; {rebuild}"
        )
    if hashlib.sha256(engine).hexdigest() != description.sha256:
        raise ExportError(f"{path} is damaged: its hash differs; {rebuild}")
    return description, engine


def _opened(path: Path):  # type: ignore[no-untyped-def]
    try:
        return path.open("rb")
    except OSError as error:
        raise ExportError(
            f"cannot read {path}: {error.strerror}; make it with nvila export"
        ) from None


def _read_header(path: Path, content: bytes) -> tuple[Description, int]:
    try:
        magic, length = HEADER.unpack_from(content)
        if magic != MAGIC:
            raise ValueError(f"begins with {magic!r}")
        begin = HEADER.size + length
        fields = json.loads(content[HEADER.size : begin])
        return Description(**{**fields, "gpus": tuple(fields["gpus"])}), begin
    except (struct.error, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"{path} is no engine file of nvila_ros ({error}); make one with nvila export"
        ) from None

# SPDX-License-Identifier: Apache-2.0
"""Row files of published data sets to samples, opened lazily: one entry per row, broken ones named.

llava        image, images or video with a conversation (also sharegpt's and LLaVA-Video's)
navila       {"video_id", "q": instruction, "a": answer, "frames": [..., current]}
envdrop      {"video_id" or "video", "instruction"}: describe the trajectory that was driven
streamvln    {"id", "video", "instructions": [...], "actions": [-1, 3, 1, ...]}, <video>/rgb/*.jpg
r2r, rxr     VLN-CE episodes (.json.gz) with their _gt actions; frames in <media>/<episode_id>/
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nvila_ros.actions import ACTIONS, STOP, parse_action
from nvila_ros.errors import ActionParseError, ConfigError, DataError
from nvila_ros.models.video import PICTURE_SUFFIXES
from nvila_ros.training.data.conversations import conversation_sample
from nvila_ros.training.data.sample import ClipFile, FrameFile, Sample, Turn
from nvila_ros.training.data.stream import BrokenRow, ListStream, Part
from nvila_ros.training.data.trajectories import decisions, streamvln_actions

SUMMARY_PROMPT = (  # NaVILA's words for EnvDrop
    "Assume you are a robot designed for navigation. You are provided with captured images "
    "sequences <image> Based on this image sequence, please describe the navigation trajectory of "
    "the robot."
)
Row = dict[str, Any]


@dataclass(frozen=True)
class RowsSource:
    """One file of rows as a source."""

    name: str
    path: Path
    format: str
    media: Path | None = None  # what frames' paths are relative to; None: the file's folder
    annotations: Path | None = None  # r2r, rxr: the _gt file; None: found by its name
    stop_repeats: int = 1  # how often a row that stops is there (NaVILA: 5 for RxR and Human)
    every_step: bool = False  # trajectories: a decision at each frame, not at merged runs alone
    languages: tuple[str, ...] = ("en-US", "en-IN")  # rxr
    summarises: bool = False  # trajectories become descriptions, not decisions

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(
                f"format is {self.format!r}; one of {', '.join(sorted(FORMATS))} is expected"
            )
        if self.stop_repeats < 1:
            raise ConfigError(f"stop_repeats is {self.stop_repeats}; at least 1 is expected")

    @property
    def folder(self) -> Path:
        """What frames' paths are relative to."""
        return self.path.parent if self.media is None else self.media

    def open(self, part: Part, seed: int, *, epochs: int | None = None) -> ListStream:
        """See `Source`."""
        return ListStream(self.rows(), part, seed, epochs=epochs)

    def rows(self) -> Rows:
        """All samples, in the order of the file."""
        return Rows(self)


class Rows(Sequence[Sample | BrokenRow]):
    """The samples of a file; a row is looked at when it is asked for."""

    def __init__(self, source: RowsSource) -> None:
        self.source = source

    @cached_property
    def _makers(self) -> list[tuple[str, Callable[[], Sample]]]:
        """(name of the row, what makes its sample)."""
        return list(FORMATS[self.source.format](self.source))

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        name, make = self._makers[index]
        try:
            return make()
        except DataError as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"malformed row ({error!r})"
        return BrokenRow(self.source.name, str(self.source.path), name, reason)


def read_rows(path: Path) -> list[Any]:
    """A JSON list or JSON lines, plain or gzipped."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
        if text.lstrip()[:1] == "[":
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines ({error}); was it cut short?"
        ) from None


def _named(rows: list[Any], *keys: str) -> Iterator[tuple[str, Row]]:
    """(unique name, row): its own id where it has one, with its number in the file."""
    for number, row in enumerate(rows):
        own = next((row[key] for key in keys if isinstance(row, dict) and key in row), None)
        yield (f"{number}" if own is None else f"{number}:{own}"), row


def _llava(source: RowsSource) -> Iterator[tuple[str, Callable[[], Sample]]]:
    for name, row in _named(read_rows(source.path), "id"):
        yield name, _bind(conversation_sample, row, name, source.name, None, source.folder)


def _navila(source: RowsSource) -> Iterator[tuple[str, Callable[[], Sample]]]:
    for name, row in _named(read_rows(source.path), "video_id"):
        answer = row.get("a") if isinstance(row, dict) else None
        is_stop = isinstance(answer, str) and "stop" in answer.lower()
        for repeat in range(source.stop_repeats if is_stop else 1):
            suffix = f"#{repeat}" if repeat else ""
            yield name + suffix, _bind(_navila_sample, row, name + suffix, source)


def _navila_sample(row: Row, name: str, source: RowsSource) -> Sample:
    if not row.get("frames"):
        raise DataError(f"{name}: the row has no frames; a list that ends with the current one")
    try:
        answer = parse_action(row["a"]).sentence
    except ActionParseError as error:
        raise DataError(f"{name}: {error}") from None
    return Sample(
        key=name,
        source=source.name,
        kind="navigation",
        frames=tuple(FrameFile(source.folder / frame) for frame in row["frames"]),
        turns=(Turn(user=str(row["q"]), answer=answer),),
        group=str(row["video_id"]),
    )


def _envdrop(source: RowsSource) -> Iterator[tuple[str, Callable[[], Sample]]]:
    for name, row in _named(read_rows(source.path), "video_id", "video"):
        yield name, _bind(_envdrop_sample, row, name, source)


def _envdrop_sample(row: Row, name: str, source: RowsSource) -> Sample:
    path = source.folder / str(row.get("video") or row["video_id"])
    if not path.exists():
        raise DataError(f"{name}: {path} does not exist; render or copy the trajectory's frames")
    return summary_sample(name, source.name, (ClipFile(path),), str(row["instruction"]))


def summary_sample(key: str, source: str, frames: tuple, instruction: str) -> Sample:
    """Trajectory summarisation: the frames of a drive -> the instruction that it followed."""
    turn = Turn(user=SUMMARY_PROMPT, answer=instruction.strip())
    return Sample(key=key, source=source, kind="video", frames=frames, turns=(turn,))


def _streamvln(source: RowsSource) -> Iterator[tuple[str, Callable[[], Sample]]]:
    for name, row in _named(read_rows(source.path), "id", "video"):
        try:
            actions = streamvln_actions(row["actions"])
            instructions = [str(text) for text in row["instructions"]]
            drive = Drive(name, actions, instructions, source.folder / str(row["video"]) / "rgb")
        except (DataError, KeyError, TypeError) as error:
            yield (
                name,
                _failing(f"{name}: {error}" if isinstance(error, DataError) else repr(error)),
            )
            continue
        yield from drive.rows(source, turn_deg=15)


def _episodes(source: RowsSource) -> Iterator[tuple[str, Callable[[], Sample]]]:
    """R2R-CE and RxR-CE: episodes and the oracle's actions in two files."""
    truth_path = source.annotations or source.path.with_name(
        source.path.name.replace("_guide", "").replace(".json", "_gt.json")
        if source.format == "r2r"
        else source.path.name.replace("_guide.json", "_guide_gt.json")
    )
    episodes, truth = read_object(source.path, "episodes"), read_object(truth_path)
    for episode in episodes:
        name = str(episode.get("episode_id"))
        instruction = episode.get("instruction", {})
        if source.format == "rxr" and instruction.get("language") not in source.languages:
            continue
        try:
            drive = Drive(
                name,
                [int(action) for action in truth[name]["actions"]],
                [str(instruction["instruction_text"])],
                source.folder / name,
            )
        except (KeyError, TypeError, ValueError) as error:
            yield name, _failing(f"episode {name} has no actions or no instruction ({error!r})")
            continue
        yield from drive.rows(source, turn_deg=30 if source.format == "rxr" else 15)


def read_object(path: Path, key: str | None = None) -> Any:
    """A gzipped or plain JSON object, or what it holds under a key."""
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        return content if key is None else content[key]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no VLN-CE file ({error!r}); was it cut short?") from None


@dataclass(frozen=True)
class Drive:
    """One trajectory: what was done after each frame, what was asked, where the frames are."""

    name: str
    actions: list[int]
    instructions: list[str]
    folder: Path
    _frames: list[FrameFile] = field(default_factory=list)  # filled when first asked for

    def frames(self) -> list[FrameFile]:
        """The pictures by number; as many as actions, or more."""
        if not self._frames:
            if not self.folder.is_dir():
                raise DataError(f"{self.folder} does not exist; render or copy the frames")
            paths = [p for p in self.folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES]
            paths.sort(key=lambda path: (int("".join(filter(str.isdigit, path.stem)) or 0), path))
            if len(paths) < len(self.actions):
                raise DataError(
                    f"{self.folder} has {len(paths)} frames for {len(self.actions)} actions"
                )
            self._frames.extend(FrameFile(path) for path in paths)
        return self._frames

    def rows(self, source: RowsSource, turn_deg: int) -> Iterator[tuple[str, Callable[[], Sample]]]:
        """A row per decision and instruction, or one per instruction where it is summarised."""
        for number, instruction in enumerate(self.instructions):
            name = f"{self.name}/{number}"
            if source.summarises:
                yield name, _bind(self._summary, name, source, instruction)
                continue
            try:
                found = decisions(self.actions, turn_deg=turn_deg, every_step=source.every_step)
            except DataError as error:
                yield name, _failing(f"{name}: {error}")
                continue
            for decision in found:
                for repeat in range(source.stop_repeats if decision.index == STOP.index else 1):
                    own = f"{name}/{decision.place}" + (f"#{repeat}" if repeat else "")
                    yield own, _bind(self._decision, own, source, instruction, decision)

    def _decision(self, name: str, source: RowsSource, instruction: str, decision: Any) -> Sample:
        return Sample(
            key=name,
            source=source.name,
            kind="navigation",
            frames=tuple(self.frames()[: decision.place + 1]),
            turns=(Turn(user=instruction, answer=ACTIONS[decision.index].sentence),),
            group=self.name,
        )

    def _summary(self, name: str, source: RowsSource, instruction: str) -> Sample:
        frames = tuple(self.frames()[: len(self.actions)])
        return summary_sample(name, source.name, frames, instruction)


def _bind(function: Callable[..., Sample], *arguments: Any) -> Callable[[], Sample]:
    return lambda: function(*arguments)


def _failing(reason: str) -> Callable[[], Sample]:
    def fail() -> Sample:
        raise DataError(reason)

    return fail


FORMATS: dict[str, Callable[[RowsSource], Iterator[tuple[str, Callable[[], Sample]]]]] = {
    "llava": _llava,
    "navila": _navila,
    "envdrop": _envdrop,
    "streamvln": _streamvln,
    "r2r": _episodes,
    "rxr": _episodes,
}

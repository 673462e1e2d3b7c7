# SPDX-License-Identifier: Apache-2.0
"""`nvila data check`: what a data set holds, how its answers are spread, which rows are broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import ConfigError, DataError, NvilaError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.encoding import encode
from nvila_ros.training.data.packing import fill_bins, padding_share
from nvila_ros.training.data.rows import RowsSource
from nvila_ros.training.data.sample import ClipFile, FrameBytes, FrameFile, Sample, open_frame
from nvila_ros.training.data.sheet import Card, draw_sheet
from nvila_ros.training.data.stream import BrokenRow, Part, Source

MAX_EXAMPLES, CARDS_PER_LABEL, MAX_CARDS, MAX_LABELS = 10, 3, 24, 12


@dataclass
class SubsetCount:
    """What one subset holds."""

    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)  # first answers
    num_frames: list[int] = field(default_factory=list)
    num_turns: int = 0
    answer_characters: int = 0
    num_tokens: list[int] = field(default_factory=list)  # where a model was given

    @property
    def num_samples(self) -> int:
        """All kinds."""
        return sum(self.kinds.values())


@dataclass
class CheckReport:
    """What was found; `as_dict` for json."""

    subsets: dict[str, SubsetCount] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)  # of pictures, 'width x height'
    num_pictures: int = 0  # distinct ones that were opened
    num_broken: int = 0
    broken_of: Counter[str] = field(default_factory=Counter)
    examples: list[BrokenRow] = field(default_factory=list)
    cards: dict[tuple[str, str], list[Card]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Good rows."""
        return sum(subset.num_samples for subset in self.subsets.values())

    @property
    def broken_share(self) -> float:
        """Of all rows."""
        return self.num_broken / max(1, self.num_broken + self.num_samples)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "num_samples": self.num_samples,
            "num_broken": self.num_broken,
            "num_pictures": self.num_pictures,
            "picture_sizes": dict(self.sizes.most_common(MAX_LABELS)),
            "subsets": {name: _subset_dict(subset) for name, subset in self.subsets.items()},
            "broken": {
                "by_place": dict(self.broken_of.most_common(MAX_EXAMPLES)),
                "examples": [vars(row) for row in self.examples],
            },
        }


def check(
    source: Source,
    *,
    limit: int | None = None,
    tokenizer: Tokenizer | None = None,
    config: NvilaConfig | None = None,
    on_row: Callable[[int], None] = lambda count: None,
) -> CheckReport:
    """Reads every row and opens every distinct picture; with a tokenizer it counts tokens too."""
    report = CheckReport()
    opened: set[Any] = set()
    rng = np.random.default_rng(0)
    for number, item in enumerate(every_row(source)):
        if limit is not None and number >= limit:
            break
        broken = (
            item
            if isinstance(item, BrokenRow)
            else _look_at(item, report, opened, tokenizer, config, rng)
        )
        if broken is not None:
            report.num_broken += 1
            report.broken_of[broken.where] += 1
            if len(report.examples) < MAX_EXAMPLES:
                report.examples.append(broken)
        on_row(number + 1)
    if not report.num_samples and not report.num_broken:
        raise DataError(f"{source.name} holds no rows")
    return report


def every_row(source: Source) -> Iterator[Sample | BrokenRow]:
    """All rows once: a file's in its order, others as their stream gives them."""
    yield from source.rows() if isinstance(source, RowsSource) else source.open(Part(), 0, epochs=1)


def _look_at(
    sample: Sample,
    report: CheckReport,
    opened: set[Any],
    tokenizer: Tokenizer | None,
    config: NvilaConfig | None,
    rng: np.random.Generator,
) -> BrokenRow | None:
    """Counts a sample, or says why it is broken."""
    try:
        for frame in sample.frames:
            identity: Any = frame
            if isinstance(frame, FrameBytes):
                identity = frame.name
            elif not isinstance(frame, (FrameFile, ClipFile)):
                identity = id(frame)
            if identity in opened:
                continue
            width, height = open_frame(frame).size
            opened.add(identity)
            report.num_pictures += 1
            report.sizes[f"{width} x {height}"] += 1
        length = None
        if tokenizer is not None and config is not None:
            length = len(encode(sample, tokenizer, config))
    except NvilaError as error:
        return BrokenRow(sample.source, sample.source, sample.key, str(error))
    subset = report.subsets.setdefault(sample.source, SubsetCount())
    subset.kinds[sample.kind] += 1
    label = sample.turns[0].answer
    subset.labels[label] += 1
    subset.num_frames.append(len(sample.frames))
    subset.num_turns += len(sample.turns)
    subset.answer_characters += sum(len(turn.answer) for turn in sample.turns)
    if length is not None:
        subset.num_tokens.append(length)
    _keep_card(report, sample, label, subset.labels[label], rng)
    return None


def _keep_card(
    report: CheckReport, sample: Sample, label: str, count: int, rng: np.random.Generator
) -> None:
    """A few samples per label, any of them equally likely."""
    key = (sample.source, label)
    if key not in report.cards and len(report.cards) >= MAX_CARDS:
        return
    cards = report.cards.setdefault(key, [])
    if len(cards) < CARDS_PER_LABEL:
        cards.append(Card(sample))
    elif (place := int(rng.integers(count))) < CARDS_PER_LABEL:
        cards[place] = Card(sample)


def save_sheet(report: CheckReport, path: Path) -> None:
    """A PNG of samples of every label, one per label first."""
    rounds = [
        cards[number]
        for number in range(CARDS_PER_LABEL)
        for cards in report.cards.values()
        if number < len(cards)
    ]
    if not rounds:
        raise DataError("no row could be read: there is nothing to draw")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_sheet(rounds[:MAX_CARDS]).save(path)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; name a .png") from None


def packing_gain(lengths: list[int], max_tokens: int, window: int = 64) -> dict[str, float]:
    """Share of places without a token, one sample per sequence and packed in windows."""
    bins: list[list[int]] = []
    for start in range(0, len(lengths), window):
        part = [min(length, max_tokens) for length in lengths[start : start + window]]
        bins += [[start + i for i in members] for members in fill_bins(part, max_tokens)]
    single = [[index] for index in range(len(lengths))]
    clipped = [min(length, max_tokens) for length in lengths]
    return {
        "sequences": len(bins),
        "padding_packed": padding_share(clipped, bins, max_tokens),
        "padding_single": padding_share(clipped, single, max_tokens),
    }


def _subset_dict(subset: SubsetCount) -> dict[str, Any]:
    count = subset.num_samples
    values: dict[str, Any] = {
        "num_samples": count,
        "kinds": dict(subset.kinds),
        "num_turns": subset.num_turns,
        "mean_frames": sum(subset.num_frames) / count,
        "max_frames": max(subset.num_frames),
        "mean_answer_characters": subset.answer_characters / max(1, subset.num_turns),
        "num_labels": len(subset.labels),
        "labels": dict(subset.labels.most_common(MAX_LABELS)),
    }
    if subset.num_tokens:
        values["tokens"] = {
            "mean": float(np.mean(subset.num_tokens)),
            "p50": int(np.percentile(subset.num_tokens, 50)),
            "p95": int(np.percentile(subset.num_tokens, 95)),
            "max": max(subset.num_tokens),
        }
    return values

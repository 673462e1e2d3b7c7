# SPDX-License-Identifier: Apache-2.0
"""A recipe's `data:` to sources, weights and a loader."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.loader import Loader, LoaderSettings
from nvila_ros.training.data.rows import FORMATS, RowsSource
from nvila_ros.training.data.shards import find_shards
from nvila_ros.training.data.stream import Source
from nvila_ros.training.data.subset import SelectedSource, read_selection

# Formats beyond files: module and function that makes the source from (name, options).
PLUGINS = {"simulator": ("nvila_ros.training.simulator_source", "open_simulator")}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set of a mixture."""

    name: str
    format: str = "shards"  # shards, simulator, or a format of rows.py
    path: str | None = None  # file, folder or address; none for the simulator
    weight: float = 1.0  # share of the samples drawn, relative to the other sources
    media: str | None = None  # folder that the rows' pictures are relative to
    buffer_size: int = 1000  # shards: samples among which the next is drawn
    select: str | None = None  # a selection written by `nvila data prune`: only its keys are read
    options: Any = field(default_factory=dict)  # of the format, a mapping


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A recipe's `data:`: which sources, how often, and how they become batches."""

    sources: tuple[SourceConfig, ...]
    loader: LoaderSettings = field(default_factory=LoaderSettings)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"data: sources are named {names}; one name each, at least one")


def open_source(config: SourceConfig) -> Source:
    """The source that a recipe or a command names; DataError where it is not there."""
    if config.format in PLUGINS:
        module, function = PLUGINS[config.format]
        try:
            make = getattr(importlib.import_module(module), function)
        except ImportError as error:
            raise ConfigError(f"format {config.format!r} needs {module} ({error})") from None
        return make(config.name, dict(config.options))
    if config.path is None:
        raise ConfigError(f"source {config.name!r} has no path; format {config.format!r} needs one")
    source: Source
    if config.format == "shards":
        source = find_shards(config.path, config.name, config.buffer_size)
    else:
        source = _rows(config)
    if config.select is not None:
        source = SelectedSource(source, read_selection(config.select))
    return source


def _rows(config: SourceConfig) -> RowsSource:
    assert config.path is not None, "the caller has checked it"
    path = Path(config.path)
    if config.format not in FORMATS:
        known = ", ".join(["shards", *PLUGINS, *sorted(FORMATS)])
        raise ConfigError(f"format is {config.format!r}; one of {known} is expected")
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a file of rows in format {config.format!r}")
    options = dict(config.options)
    for name in ("annotations",):
        if name in options:
            options[name] = Path(options[name])
    if "languages" in options:
        options["languages"] = tuple(options["languages"])
    media = None if config.media is None else Path(config.media)
    try:
        return RowsSource(config.name, path, config.format, media, **options)
    except TypeError as error:
        raise ConfigError(f"source {config.name!r}: {error}") from None


def guess_format(path: str) -> str:
    """The format of a path by its first row; ConfigError where it cannot be told."""
    from nvila_ros.training.data.rows import read_rows

    if path.startswith(("http://", "https://")) or path.endswith(".tar") or Path(path).is_dir():
        return "shards"
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist; give a folder of shards or a file of rows")
    rows = read_rows(Path(path))
    first = next((row for row in rows if isinstance(row, dict)), {})
    for format_name, keys in (
        ("llava", {"conversations"}),
        ("navila", {"q", "a"}),
        ("streamvln", {"actions", "instructions"}),
        ("envdrop", {"instruction"}),
    ):
        if keys <= set(first) and "episodes" not in first:
            return format_name
    if "episodes" in first:
        language = first["episodes"][0].get("instruction", {}).get("language")
        return "rxr" if language else "r2r"
    raise ConfigError(
        f"{path}: rows with keys {sorted(first)[:8]} are of no known format; give --format"
    )


def make_loader(
    config: MixtureConfig,
    tokenizer: Tokenizer,
    model_config: NvilaConfig,
    *,
    rank: int = 0,
    num_ranks: int = 1,
) -> Loader:
    """Batches of a mixture for one rank."""
    return Loader(
        {source.name: open_source(source) for source in config.sources},
        {source.name: source.weight for source in config.sources},
        tokenizer,
        model_config,
        config.loader,
        rank=rank,
        num_ranks=num_ranks,
    )

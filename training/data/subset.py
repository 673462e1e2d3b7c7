# SPDX-License-Identifier: Apache-2.0
"""A source less the samples that pruning left out: the selection is a file of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nvila_ros.errors import DataError
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.stream import BrokenRow, Part, SampleStream, Source, State


@dataclass(frozen=True)
class SelectedSource:
    """Only the samples whose keys are in the selection."""

    source: Source
    keys: Mapping[str, frozenset[str]]  # by the samples' source

    @property
    def name(self) -> str:
        """The inner source's."""
        return self.source.name

    def open(self, part: Part, seed: int, *, epochs: int | None = None) -> SelectedStream:
        """See `Source`."""
        return SelectedStream(self.source.open(part, seed, epochs=epochs), self.keys, self.name)


class SelectedStream:
    """Drops what was not selected; gives up where nothing of it is found."""

    def __init__(self, stream: SampleStream, keys: Mapping[str, frozenset[str]], name: str) -> None:
        self.stream, self.keys, self.name = stream, keys, name

    def __iter__(self) -> SelectedStream:
        return self

    def __next__(self) -> Sample | BrokenRow:
        for number, item in enumerate(self.stream):
            if isinstance(item, BrokenRow) or item.key in self.keys.get(item.source, ()):
                return item
            if number > 10_000_000:
                break
        else:
            raise StopIteration
        raise DataError(f"{self.name} holds none of the selected samples; score and prune it anew")

    def state_dict(self) -> State:
        """The inner stream's."""
        return self.stream.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says."""
        self.stream.load_state_dict(state)


def read_selection(path: str) -> dict[str, frozenset[str]]:
    """Keys per source in a file written by `nvila data prune`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {str(name): frozenset(keys) for name, keys in content["selected"].items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no selection ({error!r}); write one with `nvila data prune`"
        ) from None
    if not any(found.values()):
        raise DataError(f"{path} selects no sample")
    return found

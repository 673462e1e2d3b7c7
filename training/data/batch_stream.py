# SPDX-License-Identifier: Apache-2.0
"""One part of the sources as packed batches, in this process; and how samples become batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.augmentation import Augmentation, AugmentationConfig
from nvila_ros.training.data.encoding import Encoded, encode
from nvila_ros.training.data.packing import PackedBatch, fill_bins, pack
from nvila_ros.training.data.stream import BrokenRow, Guard, MixtureStream, Part, Source, State


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """How samples become batches."""

    # Tokens of one packed sequence; a longer sample loses its last turns, or is a broken row.
    max_tokens: int = 4096
    # Tiles of one packed sequence at most; None: as many as come.
    max_tiles: int | None = None
    # Samples that are looked at together to fill sequences; more waste less and mix wider.
    window: int = 64
    # Several samples per sequence; False: one each, for comparison.
    packs: bool = True
    # Pad every sequence to `max_tokens`: constant shapes, one compilation.
    fixed_length: bool = False
    # Pad to a multiple of this many tokens (FP8 kernels: 128).
    multiple: int = 1
    # Processes that read, decode and encode; 0: in this one.
    num_workers: int = 2
    # Batches that each process holds ready.
    prefetch: int = 2
    # How processes start; a renderer's context does not survive a fork.
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    # Share of rows that may be broken before the run ends with an error.
    max_broken_share: float = 0.01
    # Order, mixture and augmentation.
    seed: int = 0
    # Passes over finite sources; None: without end.
    epochs: int | None = None
    # Whether batches are put in page-locked memory.
    pins_memory: bool = False
    augmentation: AugmentationConfig | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "window", "multiple", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is expected")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers is {self.num_workers}; 0 or more are expected")


class BatchStream:
    """Packed batches of one part of the sources, in this process."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        tokenizer: Tokenizer,
        config: NvilaConfig,
        settings: LoaderSettings,
        part: Part,
    ) -> None:
        self.tokenizer, self.config, self.settings, self.part = tokenizer, config, settings, part
        streams = {
            name: source.open(part, settings.seed, epochs=settings.epochs)
            for name, source in sources.items()
        }
        mixture = MixtureStream(streams, weights, settings.seed * 65_537 + part.index)
        self.guard = Guard(mixture, settings.max_broken_share)
        self._augmentation = Augmentation.maybe(settings.augmentation, settings.seed)
        self._window_start: State | None = None
        self._window = self._num_emitted = 0
        self._waiting: list[list[Encoded]] = []

    def __iter__(self) -> Iterator[PackedBatch]:
        return self

    def __next__(self) -> PackedBatch:
        while not self._waiting:
            self._fill()
        self._num_emitted += 1
        settings = self.settings
        return pack(
            self._waiting.pop(),
            length=settings.max_tokens if settings.fixed_length else None,
            multiple=settings.multiple,
        )

    def _fill(self) -> None:
        """The next window of samples, laid into sequences; StopIteration at the end."""
        self._window_start = self.guard.state_dict()
        self._num_emitted = 0
        samples: list[Encoded] = []
        while len(samples) < self.settings.window:
            try:
                samples += self._encoded()
            except StopIteration:
                break
        if not samples:
            raise StopIteration
        settings = self.settings
        if settings.packs:
            lengths = [len(sample) for sample in samples]
            tiles = [len(sample.tiles) for sample in samples]
            bins = fill_bins(lengths, settings.max_tokens, settings.max_tiles, tiles)
        else:
            bins = [[index] for index in range(len(samples))]
        order = np.random.default_rng(
            [settings.seed, 14, self.part.index, self._window]
        ).permutation(len(bins))
        self._waiting = [[samples[index] for index in bins[number]] for number in order]
        self._window += 1

    def _encoded(self) -> list[Encoded]:
        """The next sample as a list of one, or an empty one where its row is broken."""
        sample = next(self.guard)
        try:
            limit = min(self.settings.max_tokens, self.config.language.model_max_length)
            encoded = encode(
                sample, self.tokenizer, self.config, augment=self._changed, max_length=limit
            )
            if self.settings.max_tiles is not None and len(encoded.tiles) > self.settings.max_tiles:
                raise DataError(
                    f"{sample.key}: {len(encoded.tiles)} tiles, max_tiles is "
                    f"{self.settings.max_tiles}"
                )
        except DataError as error:
            self.guard.report(BrokenRow(sample.source, "decoding", sample.key, str(error)))
            return []
        return [encoded]

    def _changed(self, pictures: list[Image.Image], key: str) -> list[Image.Image]:
        """Augmented by the sample's key and the window: another way each time it comes by."""
        if self._augmentation is None:
            return pictures
        return self._augmentation(pictures, f"{key}@{self._window}")

    def state_dict(self) -> State:
        """The window under way and how much of it is out."""
        if self._window_start is None:
            return {"start": self.guard.state_dict(), "window": 0, "emitted": 0}
        return {
            "start": self._window_start,
            "window": self._window - 1,
            "emitted": self._num_emitted,
        }

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says: reads the window again and drops what is out."""
        self.guard.load_state_dict(state["start"])
        self._window, self._waiting = state["window"], []
        if not state["emitted"]:
            self._window_start = None if not state["window"] else state["start"]
            self._num_emitted = 0
            return
        self._fill()
        del self._waiting[len(self._waiting) - state["emitted"] :]
        self._num_emitted = state["emitted"]

# SPDX-License-Identifier: Apache-2.0
"""The embedded simulator as a data source of every stage: `format: simulator` in a mixture."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvila_ros.config import load
from nvila_ros.errors import ConfigError, DataError, SceneError
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.stream import BrokenRow, Part, State

# What a stage of training takes, by its number and by name.
STAGES = ("captions", "captions", "text", "questions", "video", "navigation", "dagger")
HELD_OUT_SEED = 880_000  # apartments from here on are for scores and evaluation


@dataclass(frozen=True, kw_only=True)
class SimulatorOptions:
    """What one reader renders and asks."""

    stage: str = "captions"  # one of STAGES
    side_px: int = 224  # of the square pictures
    views_per_scene: int = 8  # captions, text, questions
    questions_per_view: int = 4
    num_time_tokens: int = 0  # above 0 the video stage asks when things were passed
    spans_per_drive: int = 1  # with time tokens: of the whole drive, then of stretches of it
    noise: float = 0.1  # share of random decisions while driving
    max_decisions: int = 60
    first_seed: int = 1_000
    num_scenes: int = 800_000  # an epoch
    driver: str | None = None  # dagger: folder of the checkpoint that drives beside the oracle
    driver_share: float = 0.5  # dagger: share of its decisions

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            known = ", ".join(dict.fromkeys(STAGES))
            raise ConfigError(f"stage is {self.stage!r}, one of {known} is expected")
        least = {"num_scenes": 1, "views_per_scene": 1, "spans_per_drive": 1, "side_px": 16}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} is {getattr(self, name)}, at least {value} is expected")


def open_simulator(name: str, options: dict[str, Any]) -> SimulatorSource:
    """A mixture's source; ConfigError names an unknown option."""
    return SimulatorSource(name, load(SimulatorOptions, options))


def scene_samples(
    seed: int, options: SimulatorOptions, source: str = "simulator", epoch_seed: int = 0
) -> list[Sample]:
    """All samples of the stage in the apartment of a seed; the same for the same arguments.

    Raises SceneError where the apartment offers no episode.
    """
    rng = np.random.default_rng([epoch_seed, seed, 17])
    if options.stage in ("captions", "text", "questions"):
        return _view_samples(seed, options, source, rng)
    from nvila_ros.training import simulator_drives as drives

    if options.stage in ("video", "navigation"):
        driven = drives.drive(seed, options.side_px, rng, options.noise, options.max_decisions)
        if options.stage == "video":
            return drives.video_samples(
                driven, rng, source, options.num_time_tokens, options.spans_per_drive
            )
        return drives.decision_samples(driven, source)
    choose = None if options.driver is None else _chooser(options.driver, seed)
    driven = drives.drive(
        seed,
        options.side_px,
        rng,
        0.25 if choose is None else options.noise,
        options.max_decisions,
        choose,
        options.driver_share,
    )
    return drives.decision_samples(driven, source)


def _view_samples(
    seed: int, options: SimulatorOptions, source: str, rng: np.random.Generator
) -> list[Sample]:
    from nvila_ros.training import simulator_views as views

    found = views.look_around(seed, options.views_per_scene, options.side_px, rng)
    if options.stage == "captions":
        return views.caption_samples(found, rng, source)
    if options.stage == "text":
        return views.text_samples(found, rng, source)
    return views.question_samples(found, rng, source, options.questions_per_view)


_policies: dict[str, Any] = {}  # per process: one model for all drives


def _chooser(folder: str, seed: int) -> Any:
    """The model of a folder as a driver of one episode."""
    from nvila_ros.policy import NavigationPolicy
    from nvila_ros.sim.episodes import episode_from_seed

    if folder not in _policies:
        _policies[folder] = NavigationPolicy.load(folder)
    policy = _policies[folder]
    policy.reset(episode_from_seed(seed).instruction)
    num_seen = 0

    def choose(poses: np.ndarray, frames: np.ndarray) -> int:
        nonlocal num_seen
        for pose, frame in zip(poses[num_seen:], frames[num_seen:], strict=True):
            policy.observe(frame, *map(float, pose), 0.5 * num_seen)
            num_seen += 1
        decision = policy.decide()
        policy.tried(decision)
        return decision.index

    return choose


@dataclass(frozen=True)
class SimulatorSource:
    """See `Source`; part i of n takes every n-th apartment."""

    name: str
    options: SimulatorOptions = field(default_factory=SimulatorOptions)

    def open(self, part: Part, seed: int, *, epochs: int | None = None) -> SimulatorStream:
        """Samples of a part's apartments, in another order and other views each epoch."""
        return SimulatorStream(self.name, self.options, part, seed, epochs)


class SimulatorStream:
    """Renders one apartment's samples when they are needed; stands between any two of them."""

    def __init__(
        self, name: str, options: SimulatorOptions, part: Part, seed: int, epochs: int | None
    ) -> None:
        self.name, self.options, self.part = name, options, part
        self.seed, self.epochs = seed, epochs
        self._scene = 0  # how many of the part's apartments are through
        self._taken = 0  # samples of the one under way
        self._ready: deque[Sample] | None = None

    def __iter__(self) -> Iterator[Sample | BrokenRow]:
        """Itself."""
        return self

    def __next__(self) -> Sample | BrokenRow:
        """The next sample; an apartment without an episode is a broken row."""
        while True:
            if self._ready is None:
                epoch, scene_seed = self._apartment()
                try:
                    samples = scene_samples(
                        scene_seed, self.options, self.name, self.seed + 1_000_003 * epoch
                    )
                except SceneError as error:
                    self._scene, self._taken = self._scene + 1, 0
                    return BrokenRow(self.name, "simulator", str(scene_seed), str(error))
                self._ready = deque(samples[self._taken :])
            if self._ready:
                self._taken += 1
                return self._ready.popleft()
            self._ready, self._taken, self._scene = None, 0, self._scene + 1

    def _apartment(self) -> tuple[int, int]:
        """Epoch and seed of the apartment under way; StopIteration after the last epoch."""
        options, part = self.options, self.part
        per_epoch = len(range(part.index, options.num_scenes, part.count))
        if per_epoch == 0:
            raise StopIteration
        epoch, number = divmod(self._scene, per_epoch)
        if self.epochs is not None and epoch >= self.epochs:
            raise StopIteration
        place = part.index + number * part.count
        # Every apartment once an epoch, from another one on.
        start = np.random.default_rng([self.seed, epoch]).integers(options.num_scenes)
        return epoch, options.first_seed + int((place + start) % options.num_scenes)

    def state_dict(self) -> State:
        """Which apartment and how many of its samples were given out."""
        return {"source": self.name, "scene": self._scene, "taken": self._taken}

    def load_state_dict(self, state: State) -> None:
        """Goes where the state says."""
        if state.get("source") != self.name:
            raise DataError(
                f"the saved state is of {state.get('source')!r}, this stream is {self.name!r}; "
                "resume with the recipe that saved it"
            )
        self._scene, self._taken = int(state["scene"]), int(state["taken"])
        self._ready = None

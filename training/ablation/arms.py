# SPDX-License-Identifier: Apache-2.0
"""Ablations of the small model as data: what each arm changes, and how long all of them train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nvila_ros.errors import ConfigError
from nvila_ros.training.vocabulary import NetworkShape

KEEPS = ("all", "random", "delta")
DRIVES = ("none", "own", "oracle")


@dataclass(frozen=True)
class Arm:
    """One training run; what is left out is as in the arm that all others are compared with."""

    name: str
    seed: int = 1
    network: NetworkShape = field(default_factory=NetworkShape)
    episodes: float = 1.0  # share of the corpus' episodes that it may see
    keep: str = "all"  # of these episodes' decisions: all, or half, drawn at random or by Delta
    see_weight: float = 0.4  # of the questions about views
    goes_on: str | None = None  # the arm whose weights it starts from; else from nothing
    drives: str = "none"  # half of its decisions are newer: the model's own, or the oracle's
    twins: bool = False  # its drives' frames are shown under other instructions too
    whole: bool = False  # the tower learns too, from pixels; else it is the released one, frozen
    steps: float = 1.0  # of the arms' common number

    def __post_init__(self) -> None:
        for key, known in (("keep", KEEPS), ("drives", DRIVES)):
            if getattr(self, key) not in known:
                got = getattr(self, key)
                raise ConfigError(f"arm {self.name}: {key} is {got!r}, expected one of {known}")
        if self.drives != "none" and self.goes_on is None:
            raise ConfigError(f"arm {self.name}: newer drives need goes_on, the arm that drove")
        if self.twins and self.whole:
            raise ConfigError(f"arm {self.name}: an arm that trains whole has no twins")

    @property
    def cost(self) -> float:
        """Time of a step in units of the plain arm's, about: by the tokens of a decision."""
        if self.whole:
            return 2.0 * self.steps
        per_frame = 16 if "3x3" in self.network.mm_projector_type else 36
        tokens = 92 + self.network.num_video_frames * (per_frame + 1)
        return self.steps * tokens / 228


@dataclass(frozen=True)
class AblationRecipe:
    """All arms, the corpus they share and the time they have."""

    arms: tuple[Arm, ...]
    seed: int = 11
    corpus_s: float = 65.0  # rendering, processes' start included
    drives_s: float = 28.0  # the newer drives of `Arm.drives`
    train_until_s: float = 580.0  # since the start; no arm begins that would end later
    max_steps: int = 4000
    timed_steps: int = 40  # to plan the common number
    num_workers: int = 14
    num_robots: int = 16
    num_rounds: int = 1
    num_twins: int = 0  # per drive, for arms that have them
    ring_frames: int = 280_000
    drives_frames: int = 60_000  # of the ring, kept for the newer drives
    num_decisions: int = 256  # per step; drawn one by one where the tower is frozen
    num_views: int = 64  # per step
    whole_decisions: int = 256  # of arms that train whole, whose episodes share frames
    whole_frames: int = 512
    whole_views: int = 64
    held_out: int = 10  # every n-th apartment is for scores
    matrix_lr: float = 2e-3
    other_lr: float = 1e-3
    again_lr: float = 0.5  # of these, for arms that go on
    decay: float = 0.75
    stop_weight: float = 3.0
    compile: bool = True
    released: str = "models/nano"  # its tower is every frozen arm's, itself Delta's large model

    def arm(self, name: str) -> Arm:
        """By name."""
        return next(arm for arm in self.arms if arm.name == name)


def load_ablations(path: str | Path) -> AblationRecipe:
    """Reads a recipe; an unknown key, two arms of one name or an unknown `goes_on` is an error."""
    from nvila_ros.config import load

    mapping = yaml.safe_load(Path(path).read_text())
    arms = tuple(load(Arm, arm) for arm in mapping.pop("arms", []))
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) < len(names):
        raise ConfigError(f"{path}: arms {names}; expected at least one, each with its own name")
    for position, arm in enumerate(arms):
        if arm.goes_on is not None and arm.goes_on not in names[:position]:
            raise ConfigError(f"{path}: {arm.name} goes on from {arm.goes_on!r}, no arm before it")
    recipe = load(AblationRecipe, {**mapping, "arms": arms})
    told = [arm.name for arm in arms if arm.twins]
    if told and not recipe.num_twins:
        raise ConfigError(f"{path}: {told} learn from twins, but num_twins is 0; set it to 1")
    return recipe

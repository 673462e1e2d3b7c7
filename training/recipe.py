# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: what a run trains, on what, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nvila_ros.errors import ConfigError
from nvila_ros.training.vocabulary import NetworkShape


@dataclass(frozen=True)
class Stage:
    """A stretch of the run, by share of its time."""

    name: str
    share: float  # of the run's time
    student_share: float = 0.0  # of robots driven by the model, labelled by the oracle (DAgger)
    exam_share: float = 0.0  # of robots that the model drives alone, to measure success
    drive_weight: float = 1.0  # of the navigation answers' loss
    see_weight: float = 1.0  # of the questions about views and the dense view labels


@dataclass(frozen=True)
class NanoRecipe:
    """One training run of the small model."""

    minutes: float  # wall time of the whole run
    stages: tuple[Stage, ...]
    max_steps: int | None = None  # ends the run earlier than its minutes
    max_reuse: float | None = None  # steps wait until decisions are shown no more often than this
    seed: int = 1
    network: NetworkShape = field(default_factory=NetworkShape)
    start_from: str | None = None  # an earlier run's folder, or a released checkpoint's
    start_heads: str | None = None  # a run's folder whose training heads go with start_from
    num_workers: int = 14  # processes that drive and render
    num_robots: int = 16  # per process
    num_rounds: int = 3  # in one apartment
    ring_frames: int = 300_000  # frames kept on the device
    num_decisions: int = 1024  # per micro-batch
    num_frames: int = 2048  # different frames that these decisions may show
    num_views: int = 512  # labelled views per micro-batch
    micro_batches: int = 2  # per optimizer step
    matrix_lr: float = 2e-3  # Muon, scaled to AdamW's step
    other_lr: float = 1e-3  # AdamW: embeddings, norms, biases, heads
    weight_decay: float = 0.05
    max_gradient_norm: float = 1.0
    temperature: float = 0.3  # of the soft targets, in units of 25 cm or 15 degrees
    stop_weight: float = 1.0  # of decisions where the oracle stops; above 1 it stops too early
    searches: bool = False  # the teacher looks round where no frame shows the next door or goal
    num_twins: int = 0  # other goals for which every drive is labelled and shown too
    mirror_share: float = 0.5  # of episodes and views that are turned round
    route_weight: float = 0.3  # of the geometry and clause heads
    warmup: float = 0.03  # share of the run
    decay: float = 0.3  # share of the run
    compile: bool = True
    graphs: bool = False  # replay the compiled step and the student as CUDA graphs

    def stage_at(self, progress: float) -> Stage:
        """The stage under way at this share of the run's time."""
        passed = 0.0
        for stage in self.stages:
            passed += stage.share
            if progress < passed:
                return stage
        return self.stages[-1]


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> NanoRecipe:
    """Reads a recipe; an unknown key or shares that do not add up are errors.

    `changes` are 'key=value' with the value in YAML: 'network={num_video_frames: 4}'.
    """
    from nvila_ros.config import load  # the same strictness as the node's parameters

    mapping = yaml.safe_load(Path(path).read_text())
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise ConfigError(f"got {change!r}, expected key=value, for example minutes=4")
        mapping[key.strip()] = yaml.safe_load(value)
    stages = tuple(load(Stage, stage) for stage in mapping.pop("stages", []))
    if not stages:
        raise ConfigError(f"{path} lists no stages; give at least one with a name and a share")
    total = sum(stage.share for stage in stages)
    if abs(total - 1.0) > 1e-6:
        raise ConfigError(f"{path}: the stages' shares add up to {total:g}, expected 1")
    return load(NanoRecipe, {**mapping, "stages": stages})

# SPDX-License-Identifier: Apache-2.0
"""One stage of training as data: what learns, on what, for how long, and the paper's values."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nvila_ros.config import load
from nvila_ros.errors import ConfigError
from nvila_ros.training.adapters import AdaptConfig
from nvila_ros.training.data.mixture import MixtureConfig
from nvila_ros.training.fp8 import PrecisionConfig
from nvila_ros.training.fused_loss import LossConfig

RECIPES = Path(__file__).resolve().parent / "recipes"
STAGES = (
    "1_align",
    "2_visual_pretrain",
    "3_token_pretrain",
    "4_image_sft",
    "5_video_sft",
    "6_vln_sft",
    "7_dagger",
)
PARTS = ("vision_tower", "mm_projector", "llm")


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Peak learning rate of each part; None: frozen, bit for bit."""

    vision_tower: float | None = None
    mm_projector: float | None = None
    llm: float | None = None

    def __post_init__(self) -> None:
        rates = [getattr(self, part) for part in PARTS]
        if all(rate is None for rate in rates):
            raise ConfigError(f"learn: nothing learns; give a rate to one of {', '.join(PARTS)}")
        if any(rate is not None and not 0.0 < rate < 1.0 for rate in rates):
            raise ConfigError(f"learn: the rates are {rates}, expected numbers between 0 and 1")

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that learn."""
        return tuple(part for part in PARTS if getattr(self, part) is not None)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """AdamW over a cosine that starts with a linear rise."""

    steps: int | None = None  # optimizer steps; or
    samples: int | None = None  # of the mixture, over all ranks: the stage ends when they are seen
    warmup_share: float = 0.03  # of the stage
    final_share: float = 0.0  # of the peak rate, at the stage's end
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_gradient_norm: float | None = None  # None: gradients are not clipped

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.samples is None):
            raise ConfigError(
                f"schedule: steps is {self.steps} and samples is {self.samples}; give one of them"
            )
        if (self.steps or self.samples or 0) < 1:
            raise ConfigError("schedule: steps or samples must be at least 1")
        if not 0.0 <= self.warmup_share < 1.0:
            raise ConfigError(f"schedule: warmup_share is {self.warmup_share}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What one optimizer step sees, over all ranks and accumulated micro-batches."""

    # Packed sequences of at most `data.loader.max_tokens`; a multiple of the number of ranks.
    sequences: int

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ConfigError(f"batch: sequences is {self.sequences}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the step is computed and kept."""

    checkpoint_layers: bool = True  # recompute a layer's activations in the backward pass
    compile_layers: bool | None = None  # None: on a GPU
    fuse_tower: bool = False  # the tower's layers by `tower_layers`, where they can
    save_every: int = 200  # optimizer steps between checkpoints
    keep: int = 2  # newest checkpoints that stay
    log_every: int = 1  # optimizer steps between lines of the log
    seed: int = 1
    output_dtype: str = "bfloat16"  # of the stage's weights on disk

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.keep < 1 or self.log_every < 1:
            raise ConfigError("engine: save_every, keep and log_every must be at least 1")
        if self.output_dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(
                f"engine: output_dtype is {self.output_dtype!r}; float32, bfloat16 or float16 is "
                "expected"
            )


@dataclass(frozen=True, kw_only=True)
class NetworkChange:
    """What a stage changes about the network that it starts from; None: as it is."""

    image_aspect_ratio: str | None = None
    num_video_frames: int | None = None
    num_time_tokens: int | None = None  # above what there is: the vocabulary grows
    video_pool_sizes: tuple[tuple[int, int, int], ...] | None = None
    max_tiles: int | None = None
    model_max_length: int | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Only what changes."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class PaperValues:
    """What NVILA (or NaVILA) trained this stage with, to be seen beside ours."""

    source: str  # where the values are from
    learns: str
    learning_rate: str
    global_batch: str  # samples per step
    max_length: str  # tokens
    data: str
    gpus: str = "128 H100"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage, as its YAML file says it."""

    family: str  # folder beside the recipe's with the network's sizes
    stage: str
    title: str  # one line: what it is for
    learn: LearningRates
    schedule: ScheduleConfig
    batch: BatchConfig
    data: MixtureConfig
    paper: PaperValues | None = None
    network: NetworkChange = field(default_factory=NetworkChange)
    engine: EngineConfig = field(default_factory=EngineConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    # Smoothing of time tokens' targets, in time tokens (the released soft_ce_std); None: plain.
    time_std: float | None = None
    # Held-out apartments that the result is asked about at the end; simulator sources only.
    score_scenes: int = 0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigError(f"stage is {self.stage!r}, expected one of {', '.join(STAGES)}")
        if self.precision.optimizer_states == "float8" and self.precision.compute == "float32":
            raise ConfigError(
                "precision: optimizer_states float8 keeps weights in bfloat16, compute is float32; "
                "set compute to bfloat16, float8_tensor or float8_row"
            )
        if self.time_std is not None and self.time_std <= 0.0:
            raise ConfigError(f"time_std is {self.time_std}, expected more than 0, or null")
        if self.score_scenes < 0:
            raise ConfigError(f"score_scenes is {self.score_scenes}, expected 0 or more")
        if self.adapt.has_lora and self.network.num_time_tokens is not None:
            raise ConfigError(
                "adapt has LoRA and network.num_time_tokens grows the vocabulary, whose new rows "
                "LoRA does not learn; do one of them per stage"
            )

    @property
    def adapted_parts(self) -> set[str]:
        """Parts that learn through adapters or norms only."""
        chosen = {"vision_tower": self.adapt.tower, "llm": self.adapt.llm}
        return {part for part, how in chosen.items() if how in ("layernorm", "lora", "qlora")}

    @property
    def number(self) -> int:
        """1 to 7."""
        return STAGES.index(self.stage) + 1


def recipe_path(family: str, stage: str) -> Path:
    """The shipped recipe of a family's stage."""
    path = RECIPES / family / f"{stage}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"there is no recipe {path.name} of the family {family!r}; families are "
            f"{', '.join(families())}, stages {', '.join(STAGES)}"
        )
    return path


def families() -> list[str]:
    """Names of the families that have recipes."""
    return sorted(path.parent.name for path in RECIPES.glob("*/family.yaml"))


def load_stage(path: str | Path, overrides: Sequence[str] = ()) -> StageRecipe:
    """Reads a recipe and applies `key.key=value`; an unknown key anywhere is an error naming it."""
    mapping = read_yaml(path)
    for text in overrides:
        override(mapping, text)
    return load(StageRecipe, mapping, Path(path).name)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give a recipe, for example "
            f"{RECIPES.name}/nano/{STAGES[0]}.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected a mapping of keys")
    return dict(content)


def override(mapping: dict[str, Any], text: str) -> None:
    """Sets `a.b.c=value` in nested mappings and lists; the value is read as YAML."""
    keys, separator, value = text.partition("=")
    if not separator or not all(keys.split(".")):
        raise ConfigError(f"--override {text!r}: expected key=value, for example schedule.steps=10")
    *path, last = keys.split(".")
    place: Any = mapping
    for key in path:
        place = _enter(place, key, text)
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):  # YAML reads 1e-5 as text, people do not
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    if isinstance(place, list):
        place[_index(place, last, text)] = parsed
    else:
        place[last] = parsed


def _enter(place: Any, key: str, text: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, text)]
    inner = place.setdefault(key, {})
    if inner is None:
        inner = place[key] = {}
    if not isinstance(inner, (dict, list)):
        raise ConfigError(f"--override {text!r}: {key} holds {inner!r}, not keys of its own")
    return inner


def _index(place: list[Any], key: str, text: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise ConfigError(
            f"--override {text!r}: {key!r} is no place of a list of {len(place)}; count from 0"
        )
    return int(key)

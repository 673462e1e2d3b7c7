# SPDX-License-Identifier: Apache-2.0
"""Settings of every room: frozen dataclasses from a YAML mapping; a misspelt key is an error."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from nvila_ros.errors import ConfigError

Config = TypeVar("Config")
SUCCESS_RADIUS_M = 1.0  # geodesic, around an episode's goal


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """How frames are sampled by motion and how many are kept."""

    # Frames that the model is shown, the current one included (NaVILA: 8).
    num_frames: int = 8
    # Travelled distance after which a frame is kept (metres): the shortest forward motion.
    step_m: float = 0.25
    # Turned angle after which a frame is kept (radians): the smallest turn.
    step_rad: float = math.radians(15.0)
    # Share of a step that counts as a whole one: a closed-loop primitive may end a little short.
    step_tolerance: float = 0.9
    # Upper bound of kept frames: long episodes are thinned, memory stays flat (118 MB at 640x480).
    capacity: int = 128

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ConfigError(f"num_frames is {self.num_frames}, expected at least 1")
        if self.capacity < max(3, self.num_frames):
            raise ConfigError(
                f"capacity is {self.capacity}, expected at least {max(3, self.num_frames)}"
            )
        if not (self.step_m > 0.0 and self.step_rad > 0.0):
            raise ConfigError(
                f"step_m {self.step_m} and step_rad {self.step_rad} must be above zero"
            )
        if not 0.5 <= self.step_tolerance <= 1.0:
            raise ConfigError(f"step_tolerance is {self.step_tolerance}, expected 0.5 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What counts as success in a closed-loop episode, and when it is given up."""

    # STOP counts within this geodesic distance of the goal (metres), strictly.
    success_radius_m: float = SUCCESS_RADIUS_M
    # Decisions (one primitive each) after which an episode fails.
    max_decisions: int = 200
    # Side of the rendered camera image (pixels).
    image_side_px: int = 224
    # Spacing of the reference path that nDTW compares with (metres).
    reference_spacing_m: float = 0.25

    def __post_init__(self) -> None:
        for name in ("success_radius_m", "max_decisions", "image_side_px", "reference_spacing_m"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a value above zero")


def load(cls: type[Config], mapping: Mapping[str, Any], where: str = "") -> Config:
    """Builds the dataclass `cls` from a mapping; unknown, missing and ill-typed keys are errors."""
    prefix = f"{where}: " if where else ""
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{prefix}expected a mapping of {cls.__name__} keys, got {type(mapping).__name__}"
        )
    hints = typing.get_type_hints(cls)
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in mapping:
        if key not in fields:
            raise ConfigError(prefix + unknown_key_message(str(key), fields))
    values = {
        key: _convert(value, hints[key], f"{where}.{key}" if where else key)
        for key, value in mapping.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{prefix}missing {', '.join(missing)} of {cls.__name__}")
    return cls(**values)


def unknown_key_message(key: str, known: typing.Iterable[str]) -> str:
    """The one wording for a misspelt key, with the nearest known one."""
    names = sorted(known)
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    advice = f"did you mean '{nearest[0]}'?" if nearest else f"known keys are {', '.join(names)}"
    return f"unknown key '{key}'; {advice}"


def _convert(value: Any, hint: Any, name: str) -> Any:
    """A YAML value as the type of its field; only lossless conversions are made."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _convert(value, hint, name)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(
                f"{name} is {value!r}, expected one of {', '.join(map(repr, arguments))}"
            )
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else load(hint, value, name)
    if origin is tuple:
        return _convert_tuple(value, arguments, name)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is not Any and type(value) is not hint:
        raise ConfigError(f"{name} is {value!r}, expected {hint.__name__}")
    return value


def _convert_tuple(value: Any, arguments: tuple, name: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is {value!r}, expected a list")
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{name} has {len(value)} entries, expected {len(arguments)}")
    return tuple(
        _convert(entry, hint, f"{name}[{position}]")
        for position, (entry, hint) in enumerate(zip(value, arguments, strict=True))
    )

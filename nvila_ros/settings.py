# SPDX-License-Identifier: Apache-2.0
"""One setting of the robot: its default, its unit and reason, its range; ROS shows all of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from nvila_ros.errors import ConfigError


def setting(
    default: Any,
    text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] | None = None,
    live: bool = False,
    fixed: bool = False,
) -> Any:
    """A dataclass field that knows its description, its range and when it may change.

    `live` ones may change while the robot drives, `fixed` ones never; all others while the node is
    not configured.
    """
    metadata = {"text": text, "at_least": at_least, "at_most": at_most, "one_of": one_of}
    metadata |= {"live": live, "fixed": fixed}
    return dataclasses.field(default=default, metadata=metadata)


live_setting = functools.partial(setting, live=True)


def check_settings(config: Any) -> None:
    """ConfigError when a field of the dataclass is not finite or outside of its range."""
    for field in dataclasses.fields(config):
        value, limits = getattr(config, field.name), field.metadata
        name = f"{type(config).__name__}.{field.name}"
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}, expected a finite number")
        least, most, choices = (limits.get(key) for key in ("at_least", "at_most", "one_of"))
        if least is not None and value < least:
            raise ConfigError(f"{name} is {value}, expected at least {least}")
        if most is not None and value > most:
            raise ConfigError(f"{name} is {value}, expected at most {most}")
        if choices is not None and value not in choices:
            raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}")

# SPDX-License-Identifier: Apache-2.0
"""From ROS parameters to the frozen settings of a node; a misspelt key is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from nvila_ros import config
from nvila_ros.errors import ConfigError

Settings = TypeVar("Settings")

# What ROS itself sets on a node.
_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides.")
_LARGEST = 1e9  # stands for 'no limit' in a range


def declare(node: Node, cls: type[Settings], *, editable: bool = False) -> Settings:
    """Declares every field of a dataclass, nested ones as `outer.inner`; returns the settings.

    All are read-only, or with `editable` only the `fixed` ones; the node then hands changes to
    `changed`. An unknown name in a parameter file, or a value of the wrong type or outside
    of its range, raises ConfigError before anything is declared.
    """
    settings = config.load(cls, _nested(_overrides(node)), node.get_name())
    for name, field, value in _leaves(settings):
        descriptor = _descriptor(field, value, editable)
        node.declare_parameter(name, value, descriptor, ignore_override=True)
    return settings


def changed(settings: Settings, parameters: Iterable[Parameter], *, only_live: bool) -> Settings:
    """The settings with other values; ConfigError for nonsense, and for what may not change now.

    Parameters that are not ours (`use_sim_time`, `qos_overrides`) are passed over.
    """
    values: dict[str, Any] = {}
    fields = {}
    for name, field, value in _leaves(settings):
        values[name], fields[name] = value, field
    for parameter in parameters:
        name = parameter.name
        if name.startswith(_FOREIGN):
            continue
        if name not in fields:
            raise ConfigError(config.unknown_key_message(name, fields))
        if only_live and not fields[name].metadata.get("live"):
            raise ConfigError(
                f"{name} can only change while the node is unconfigured; call deactivate and "
                "cleanup first"
            )
        values[name] = parameter.value
    return config.load(type(settings), _nested(values))


def declare_defaults(node: Node, cls: type[Settings]) -> Settings:
    """The settings as if nothing had been given: for a node that only says what is wrong."""
    settings = cls()
    for name, field, value in _leaves(settings):
        node.declare_parameter(name, value, _descriptor(field, value), ignore_override=True)
    return settings


def _overrides(node: Node) -> dict[str, Any]:
    """Name -> value of what files, the command line and the constructor gave."""
    # rclpy has no public list of overrides that works without declaring them first.
    given = node._parameter_overrides
    return {
        name: parameter.value for name, parameter in given.items() if not name.startswith(_FOREIGN)
    }


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'motion.speed': 1} -> {'motion': {'speed': 1}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: '{group}' is a value and a group at once")
        place[last] = value
    return nested


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def _descriptor(
    field: dataclasses.Field, value: Any, editable: bool = False
) -> ParameterDescriptor:
    """Description and range as `ros2 param describe` shows them."""
    metadata = field.metadata
    read_only = not editable or bool(metadata.get("fixed"))
    descriptor = ParameterDescriptor(description=metadata.get("text", ""), read_only=read_only)
    if choices := metadata.get("one_of"):
        descriptor.additional_constraints = f"one of {', '.join(choices)}"
    least, most = metadata.get("at_least"), metadata.get("at_most")
    if least is None and most is None:
        return descriptor
    least, most = (-_LARGEST if least is None else least), (_LARGEST if most is None else most)
    if isinstance(value, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(least), to_value=float(most))
        ]
    elif isinstance(value, int) and not isinstance(value, bool):
        descriptor.integer_range = [IntegerRange(from_value=int(least), to_value=int(most))]
    return descriptor

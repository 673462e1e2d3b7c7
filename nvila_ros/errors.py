# SPDX-License-Identifier: Apache-2.0
"""Every error a user, a file or a robot can cause, by name, for all rooms of the flow."""

from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]


class NvilaError(Exception):
    """Base of the package's errors: the message says what was got, what is expected, what to do."""


class ConfigError(NvilaError):
    """A configuration holds an unknown key, a wrong type or a contradiction."""


class CheckpointError(NvilaError):
    """A checkpoint is missing, corrupt, of another size or in a form that is refused."""


class InstructionError(NvilaError):
    """An instruction is empty, too long or carries control or media tokens."""


class ActionParseError(NvilaError):
    """Free text from a model is none of the actions; the robot holds still."""


class ImageError(NvilaError):
    """An image has an encoding, a size or a content that cannot be used."""


class OdometryError(NvilaError):
    """Odometry is not finite, too old or jumps."""


class SceneError(NvilaError):
    """A scene or an episode file is malformed, or cannot be built."""


class DataError(NvilaError):
    """A row, a picture or a shard of training data is missing, broken or cut short."""


class TrainingError(NvilaError):
    """A training run cannot go on: a loss that is no number, ranks that differ, no room to save."""


class SystemLibraryError(NvilaError):
    """A system library (EGL, OSMesa) is missing; the message holds the command that installs it."""


class KernelError(NvilaError):
    """A GPU kernel cannot be compiled, loaded or launched; the message says what to install."""


class ExportError(NvilaError):
    """A network cannot be written in another engine's form, or an engine file cannot be used."""


def install_hint(extra: str) -> str:
    """The command that brings an extra of setup.py, for messages; there is no release to install.

    Beside a sourced ROS `make setup` writes pins of its own, which keep ROS's numpy.
    """
    beside_ros = ".venv/constraints.txt"
    pins = beside_ros if (_REPOSITORY / beside_ros).is_file() else "constraints.txt"
    return f"in the repository's folder run: .venv/bin/pip install -c {pins} -e '.[{extra}]'"

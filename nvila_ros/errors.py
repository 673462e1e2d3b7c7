# SPDX-License-Identifier: Apache-2.0
"""Every error a user, a file or a robot can cause, by name, for all rooms of the flow."""


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

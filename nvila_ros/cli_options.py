# SPDX-License-Identifier: Apache-2.0
"""What all commands share: options, exit codes and the one object on stdout."""

from __future__ import annotations

import enum
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_ros.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160
EXIT_INPUT = 3
EXIT_SYSTEM_LIBRARY = 4
EXIT_NOT_ARRIVED = 5
EXIT_DIFFERENT = 6
EXIT_INTERRUPTED = 130

PACKAGE_FOLDER = Path(__file__).resolve().parent
NANO_FOLDER = PACKAGE_FOLDER / "models" / "nano"

ModelOption = Annotated[
    Path, typer.Option("--model", help="Checkpoint folder.", show_default="the small one inside")
]
OutOption = Annotated[Path, typer.Option("--out", "--output", help="Folder for the result.")]
DeviceOption = Annotated[
    str, typer.Option(help="Torch device: cpu, cuda, cuda:1; auto: a GPU where there is one.")
]
RoundWeightsOption = Annotated[
    bool,
    typer.Option(
        "--round-weights",
        help="Round float weights to W8A8 and W4A16 while loading, without calibration.",
    ),
]


class BackendName(str, enum.Enum):
    """What computes: the fast kernels, plain torch, or whichever the device allows."""

    auto = "auto"
    torch = "torch"
    kernels = "kernels"


BackendOption = Annotated[
    BackendName, typer.Option(help="Fast CUDA kernels where the GPU has them, else plain torch.")
]


class VisionBackendName(str, enum.Enum):
    """Who computes features: the engine itself, or what `nvila export` made."""

    auto = "auto"
    kernels = "kernels"
    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"
    torch = "torch"


VisionBackendOption = Annotated[
    VisionBackendName,
    typer.Option(help="The tower: auto takes the fastest of the engine's and the exported ones."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def print_json(content: dict[str, Any]) -> None:
    """The one object on stdout."""
    json.dump(content, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


def wide_console() -> Console:
    """A console that does not cut names short for whoever reads them through a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def writable_folder(path: Path) -> Path:
    """Makes a folder for results before the work; ConfigError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); name a folder that can be"
        ) from None
    return path

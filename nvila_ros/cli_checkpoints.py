# SPDX-License-Identifier: Apache-2.0
"""Commands about checkpoints: ask, conformance, inspect and convert."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvila_ros.cli_options import (
    EXIT_DIFFERENT,
    EXIT_INPUT,
    BackendName,
    BackendOption,
    DeviceOption,
    JsonOption,
    RoundWeightsOption,
    print_json,
    wide_console,
)
from nvila_ros.errors import ConfigError, ImageError

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer()


class DtypeName(str, enum.Enum):
    """How weights are stored."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


@app.command()
def ask(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Pictures, in order.")] = None,
    *,
    question: Annotated[str, typer.Argument(help="What to ask about them.")],
    video: Annotated[
        Path | None, typer.Option(help="Ask about a video file or a folder of its frames.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of the video.", show_default="as trained"),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Frames per second from its start; 0: spread evenly.",
            show_default="as the checkpoint says",
        ),
    ] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = BackendName.auto,
    round_weights: RoundWeightsOption = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens after which the answer is cut.")
    ] = 128,
    as_json: JsonOption = False,
) -> None:
    """Ask a model a free question about pictures or a video."""
    from nvila_ros.models.ask import ask_pictures, ask_video
    from nvila_ros.models.runtime_backend import load_engine

    if video is not None and images:
        raise ConfigError("got pictures and --video; ask about one or the other")
    if video is None and (frames is not None or fps is not None):
        raise ConfigError("--frames and --fps are about a video; name it with --video")
    pictures = [read_image(path) for path in images or ()]
    if video is not None and not video.exists():
        raise ImageError(f"{video} does not exist; give a video file or a folder of frames")
    loaded = load_engine(model, device, backend=backend.value, quantizes=round_weights)
    if video is None:
        answer = ask_pictures(*loaded, pictures, question, max_new_tokens)
    else:
        answer = ask_video(*loaded, video, question, max_new_tokens, num_frames=frames, fps=fps)
    if as_json:
        print_json({"question": question, **answer})
    else:
        typer.echo(answer["answer"])
        for token, time_s in answer.get("times_s", {}).items():
            typer.echo(f"{token} = {time_s:.1f} s")


@app.command()
def conformance(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Checkpoints with `expected/` answers, or a folder of such."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Hold checkpoints' answers to those of the reference implementation, case by case."""
    from nvila_ros.evaluation.conformance import check, table, to_json
    from nvila_ros.evaluation.conformance_files import find_folders

    results = {str(found): check(found) for folder in folders for found in find_folders(folder)}
    passed = all(result.passed for cases in results.values() for result in cases)
    if as_json:
        contents = {folder: to_json(cases) for folder, cases in results.items()}
        print_json({"passed": passed, "folders": contents})
    else:
        console = wide_console()
        for folder, cases in results.items():
            console.print(table(cases, folder))
    if not passed:
        raise typer.Exit(EXIT_DIFFERENT)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames of a decision.")] = 8,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Show how memory is estimated.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint is, what memory it needs and if it loads, reading no weights."""
    from nvila_ros.evaluation.inspection import inspect as inspect_folder
    from nvila_ros.evaluation.inspection import tables

    result = inspect_folder(model, frames)
    if as_json:
        print_json(result)
    else:
        wide_console().print(*tables(result, with_formulas=formulas), sep="\n", markup=False)
    if result["problem"] is not None:
        raise typer.Exit(EXIT_INPUT)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder that can be read.")],
    target: Annotated[Path, typer.Argument(help="New folder in the released layout.")],
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Of the new checkpoint's floats.", show_default="as stored"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint again in the released layout; turns pickles into safetensors."""
    import torch

    from nvila_ros.models.convert import convert as convert_folder

    convert_folder(source, target, None if dtype is None else getattr(torch, dtype.value))
    files = sorted(str(path) for path in target.rglob("*.safetensors"))
    if as_json:
        print_json({"source": str(source), "target": str(target), "files": files})
    else:
        typer.echo("\n".join(files))


def read_image(path: Path) -> np.ndarray:
    """A picture file -> (H, W, 3) uint8 RGB."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; give the path of a picture file") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ImageError(f"{path} is no readable picture ({error}); give PNG or JPEG") from None

# SPDX-License-Identifier: Apache-2.0
"""Command quantize: a float checkpoint becomes one with an int8 tower and an int4 decoder."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_ros.cli_options import DeviceOption, JsonOption, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from nvila_ros.training.quantize.run import QuantizeJob

app = typer.Typer()

DEFAULT_CALIBRATION = "700000:700032"


class VisionScheme(str, enum.Enum):
    """How the tower's linears are stored and multiplied."""

    w8a8 = "w8a8"
    none = "none"


class LanguageScheme(str, enum.Enum):
    """How the decoder's linears are stored and multiplied."""

    w4a16 = "w4a16"
    none = "none"


class BackendName(str, enum.Enum):
    """Who packs the decoder."""

    own = "own"
    autoawq = "autoawq"


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="Float checkpoint folder.")],
    out: Annotated[
        Path,
        typer.Option("--out", "--output", help="New folder for the quantized checkpoint."),
    ],
    vision: Annotated[VisionScheme, typer.Option(help="The tower.")] = VisionScheme.w8a8,
    language: Annotated[LanguageScheme, typer.Option(help="The decoder.")] = LanguageScheme.w4a16,
    calibration: Annotated[
        str,
        typer.Option(
            help="Seeds A:B to drive, a number of episodes, a file of episodes or a folder of "
            "recorded prompts."
        ),
    ] = DEFAULT_CALIBRATION,
    prompts_per_episode: Annotated[int, typer.Option(min=1, help="Decisions of each.")] = 2,
    backend: Annotated[
        BackendName, typer.Option(help="Who packs the decoder; autoawq must be installed.")
    ] = BackendName.own,
    feedback: Annotated[
        bool, typer.Option(help="Let columns make up for the rounding of those before them.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Quantize a checkpoint: SmoothQuant for the tower, AWQ for the decoder, calibrated on driving.

    Goes layer by layer, so that an 8B fits 24 GB of memory; a run that was stopped goes on.
    """
    from nvila_ros.models.runtime_backend import usable_device
    from nvila_ros.training.quantize.run import QuantizeJob

    job = QuantizeJob(
        model=model,
        target=out,
        vision=vision.value,
        language=language.value,
        calibration=calibration,
        prompts_per_episode=prompts_per_episode,
        backend=backend.value,
        has_feedback=feedback,
        device=str(usable_device(device)),
    )
    report = _with_progress(job)
    if as_json:
        print_json({"source": str(model), "target": str(out), **report})
        return
    from rich.console import Console

    for table in tables(report):
        Console().print(table)
    sys.stdout.write(f"{out}\n")


def _with_progress(job: QuantizeJob) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from nvila_ros.training.quantize.run import quantize as run

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("calibration", total=None)

        def on_progress(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        return run(job, on_progress)


def tables(report: dict[str, Any]) -> list[Table]:
    """Relative squared errors per layer: of linears' outputs, and of what decoder layers add."""
    from rich.table import Table

    found = []
    if "vision_tower" in report:
        table = Table(title="tower, int8: error of the linears, rounded -> smoothed")
        for title in ("layer", "alpha qkv", "alpha fc1", "qkv", "out", "fc1", "fc2"):
            table.add_column(title)
        for number, layer in enumerate(report["vision_tower"]):
            table.add_row(str(number), *_tower_row(layer))
        found.append(table)
    if "llm" in report:
        table = Table(title="decoder, int4: error of what a layer adds")
        names = [name for name in report["llm"][0]["layer_output"] if name != "round_to_nearest"]
        for title in ("layer", "rounded", *names, "last of rounded"):
            table.add_column(title)
        for number, layer in enumerate(report["llm"]):
            errors = [layer["layer_output"][name] for name in ("round_to_nearest", *names)]
            share = f"{errors[-1] / errors[0]:.0%}" if errors[0] else "-"
            table.add_row(str(number), *(f"{error:.2e}" for error in errors), share)
        found.append(table)
    return found


def _tower_row(layer: dict[str, Any]) -> list[str]:
    """One layer of the tower; a layer that never runs was only rounded."""
    if not layer["linears"]:
        return ["not run", "", "", "", "", ""]
    alphas = [layer["alphas"][norm] for norm in ("layer_norm1", "layer_norm2")]
    row = ["none" if alpha is None else f"{alpha:.1f}" for alpha in alphas]
    groups = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("mlp.fc1",),
        ("mlp.fc2",),
    )
    for names in groups:
        errors = [layer["linears"][name] for name in names]
        plain = sum(error["round_to_nearest"] for error in errors) / len(errors)
        smooth = sum(error["smoothquant"] for error in errors) / len(errors)
        row.append(f"{plain:.1e} -> {smooth:.1e}")
    return row

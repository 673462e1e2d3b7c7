# SPDX-License-Identifier: Apache-2.0
"""Commands `nvila data score` and `nvila data prune`: DeltaLoss."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from nvila_ros.cli_data import FormatOption, MediaOption, say, source_config
from nvila_ros.cli_options import DeviceOption, JsonOption, OutOption, writable_folder
from nvila_ros.cli_scale import GpusOption, RayOption, WorkersOption, progress, scale_settings

app = typer.Typer()


class ByName(str, enum.Enum):
    """How a Delta is taken over an answer's tokens."""

    sum = "sum"
    mean = "mean"


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help="Files of rows, folders of shards.")],
    small: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    large: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    out: OutOption,
    data_format: FormatOption = None,
    media: MediaOption = None,
    rows_per_unit: Annotated[int, typer.Option(min=1, help="Rows scored between savings.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=16, help="Of a packed sequence.")] = 4096,
    max_tiles: Annotated[int, typer.Option(min=1, help="Of a packed sequence.")] = 96,
    features: Annotated[
        bool, typer.Option(help="Keep the large tower's mean feature, for clusters.")
    ] = True,
    device: DeviceOption = "auto",
    workers: WorkersOption = 1,
    ray: RayOption = None,
    gpus: GpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """DeltaLoss: the answers' log probability under the large model less that under the small.

    A run that was stopped, or whose machines died, goes on where it was.
    """
    from nvila_ros.models.runtime_backend import usable_device
    from nvila_ros.training.delta_loss import ScoreJob
    from nvila_ros.training.delta_loss_prune import read_scores
    from nvila_ros.training.delta_loss_report import score_units
    from nvila_ros.training.scale import run_units

    if device == "auto" and ray is not None and gpus:
        device = "cuda"  # the cluster's, whatever this machine has
    elif device == "auto":
        device = str(usable_device(device))
    writable_folder(out)
    job = ScoreJob(
        sources=tuple(source_config(path, data_format, media, None) for path in paths),
        large=str(large),
        small=str(small),
        device=device,
        rows_per_unit=rows_per_unit,
        max_tokens=max_tokens,
        max_tiles=max_tiles,
        keeps_features=features,
    )
    units = score_units(job.sources, rows_per_unit)
    with progress("units", len(units)) as advance:
        run_units(
            job, units, out, scale_settings(workers, ray, gpus), lambda unit, was_there: advance(1)
        )
    scores = read_scores(out)
    say(
        {
            "folder": str(out),
            "num_scored": len(scores.good),
            "num_broken": scores.num_broken,
            "subsets": {name: len(subset) for name, subset in scores.subsets().items()},
        },
        as_json,
    )


@app.command()
def prune(
    scores: Annotated[Path, typer.Argument(help="Folder that `nvila data score` wrote.")],
    keep: Annotated[float, typer.Option(help="Share of each subset that is kept.")] = 0.5,
    by: Annotated[ByName, typer.Option(help="Over an answer's tokens.")] = ByName.mean,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--output", help="Folder for the result.", show_default="SCORES/pruned"
        ),
    ] = None,
    clusters: Annotated[int, typer.Option(min=1, help="Of the cluster baseline.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the baselines.")] = 0,
    report: Annotated[bool, typer.Option(help="Write report.html with examples.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Keep the samples with the largest Delta of every subset; baselines and a report beside it.

    Each selection is a file that a recipe's source names as `select`.
    """
    from nvila_ros.training.delta_loss_prune import prune as run
    from nvila_ros.training.delta_loss_prune import read_scores
    from nvila_ros.training.delta_loss_report import read_job, write_report

    found = read_scores(scores)
    folder = scores / "pruned" if out is None else out
    summary = run(found, folder, keep=keep, by=by.value, num_clusters=clusters, seed=seed)
    if report:
        sources, rows_per_unit = read_job(scores)
        write_report(found, summary, sources, rows_per_unit, folder / "report.html")
        summary["report"] = str(folder / "report.html")
    summary["selection"] = str(folder / "delta.json")
    say(summary, as_json)

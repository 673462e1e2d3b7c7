# SPDX-License-Identifier: Apache-2.0
"""Commands `nvila data ...`: check, shard, generate, score and prune training data."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_ros.cli_options import JsonOption, OutOption, print_json, writable_folder
from nvila_ros.cli_scale import (
    RayOption,
    WorkersOption,
    progress,
    scale_settings,
)
from nvila_ros.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nvila_ros.training.data.mixture import SourceConfig

app = typer.Typer(name="data", help="Training data: look at it, store it, make it, prune it.")

PathArgument = Annotated[str, typer.Argument(help="File of rows, folder of shards or address.")]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="shards, llava, navila, envdrop, streamvln, r2r or rxr.",
        show_default="by the first row",
    ),
]
MediaOption = Annotated[
    Path | None, typer.Option(help="Folder of the rows' pictures.", show_default="the file's own")
]
NameOption = Annotated[
    str | None, typer.Option(help="Name of the subset.", show_default="the file's")
]
BrokenOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of rows that may be broken.")
]


class StageName(str, enum.Enum):
    """What the simulator asks."""

    captions = "captions"
    text = "text"
    questions = "questions"
    video = "video"
    navigation = "navigation"
    dagger = "dagger"


@app.command()
def check(
    path: PathArgument,
    data_format: FormatOption = None,
    media: MediaOption = None,
    name: NameOption = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG with samples of every label.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to look at.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint whose tokens and packing are counted.")
    ] = None,
    max_broken: BrokenOption = 0.01,
    as_json: JsonOption = False,
) -> None:
    """Count what a data set holds, how its answers are spread and which rows are broken."""
    from nvila_ros.training.data.check import check as run
    from nvila_ros.training.data.check import packing_gain, save_sheet
    from nvila_ros.training.data.check_table import print_check
    from nvila_ros.training.data.mixture import open_source

    tokenizer = config = None
    if model is not None:
        from nvila_ros.models.weights import open_checkpoint

        network, tokenizer, _ = open_checkpoint(model)
        config = network.config
    source = open_source(source_config(path, data_format, media, name))
    with progress("rows", None) as advance:
        report = run(
            source,
            limit=limit,
            tokenizer=tokenizer,
            config=config,
            on_row=lambda count: advance(1),
        )
    content = report.as_dict()
    lengths = [length for subset in report.subsets.values() for length in subset.num_tokens]
    if config is not None and lengths:
        content["packing"] = packing_gain(lengths, config.language.model_max_length)
    if sheet is not None:
        save_sheet(report, sheet)
        content["sheet"] = str(sheet)
    if as_json:
        print_json(content)
    else:
        print_check(report, content)
    if report.broken_share > max_broken:
        worst, count = report.broken_of.most_common(1)[0]
        raise DataError(
            f"{report.num_broken} rows are broken ({report.broken_share:.1%}), "
            f"{max_broken:.1%} are allowed; most in {worst} ({count}): mend or remove them"
        )


@app.command()
def shard(
    path: PathArgument,
    out: OutOption,
    data_format: FormatOption = None,
    media: MediaOption = None,
    name: NameOption = None,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="At most.")] = 1000,
    megabytes_per_shard: Annotated[int, typer.Option(min=1, help="At most.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG.")] = 92,
    max_broken: BrokenOption = 0.01,
    as_json: JsonOption = False,
) -> None:
    """Write rows and their pictures as WebDataset shards, which train, stream and resume."""
    from nvila_ros.training.data.check import every_row
    from nvila_ros.training.data.mixture import open_source
    from nvila_ros.training.data.shard_writing import write_shards

    if any(out.glob("*.tar")):
        raise ConfigError(f"{out} holds shards already; give another folder")
    source = open_source(source_config(path, data_format, media, name))
    writable_folder(out)
    with progress("rows", None) as advance:

        def counted() -> Iterator[Any]:
            for row in every_row(source):
                yield row
                advance(1)

        written = write_shards(
            counted(),
            out,
            max_samples=samples_per_shard,
            max_bytes=megabytes_per_shard * 2**20,
            quality=quality,
        )
    content = {
        "folder": str(out),
        "num_shards": len(written.shards),
        "num_samples": written.num_samples,
        "num_broken": len(written.broken),
        "broken": [f"{row.where}, {row.row}: {row.reason}" for row in written.broken[:10]],
    }
    print_json(content) if as_json else typer.echo(
        "\n".join(f"{k}: {v}" for k, v in content.items())
    )
    share = len(written.broken) / max(1, len(written.broken) + written.num_samples)
    if share > max_broken:
        raise DataError(f"{share:.1%} of the rows are broken and left out; see the list")


@app.command()
def generate(
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="Apartments A:B (B excluded) or one number.")
    ],
    out: OutOption,
    stage: Annotated[
        StageName, typer.Option(help="What the samples are: of which stage of training.")
    ] = StageName.navigation,
    side: Annotated[int, typer.Option(min=16, help="Side of the pictures, in pixels.")] = 224,
    noise: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of motions made at random.")
    ] = 0.1,
    time_tokens: Annotated[
        int, typer.Option(min=0, help="Of the network: videos ask when, too.")
    ] = 0,
    spans: Annotated[
        int, typer.Option(min=1, help="Times asked of each drive, with --time-tokens.")
    ] = 1,
    driver: Annotated[
        Path | None, typer.Option(help="dagger: checkpoint that drives beside the oracle.")
    ] = None,
    seeds_per_shard: Annotated[int, typer.Option(min=1, help="Apartments of one shard.")] = 16,
    workers: WorkersOption = 1,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render simulated apartments and store a stage's samples with exact answers as shards.

    A run that was stopped, or whose machines died, goes on where it was.
    """
    from nvila_ros.cli import parse_seeds
    from nvila_ros.training.data.generate import GenerateJob
    from nvila_ros.training.data.generate import generate as run
    from nvila_ros.training.simulator_source import SimulatorOptions

    job = GenerateJob(
        seeds=parse_seeds(seeds),
        seeds_per_unit=seeds_per_shard,
        options=SimulatorOptions(
            stage=stage.value,
            side_px=side,
            noise=noise,
            num_time_tokens=time_tokens,
            spans_per_drive=spans,
            driver=None if driver is None else str(driver),
        ),
    )
    writable_folder(out)
    with progress("shards", len(job.units())) as advance:
        content = run(job, out, scale_settings(workers, ray), lambda unit, was_there: advance(1))
    say(content, as_json)


def source_config(
    path: str, data_format: str | None, media: Path | None, name: str | None
) -> SourceConfig:
    """What a command's arguments name, its format found by its first row unless given."""
    from nvila_ros.training.data.mixture import SourceConfig, guess_format

    own = path.rstrip("/").rsplit("/", 1)[-1].split(".")[0] or "data"
    return SourceConfig(
        name=name or own,
        path=path,
        format=data_format or guess_format(path),
        media=None if media is None else str(media),
    )


def say(content: dict[str, Any], as_json: bool) -> None:
    """A result, as one JSON object or for people."""
    if as_json:
        print_json(content)
        return
    from rich.console import Console

    Console(file=sys.stdout).print(content)

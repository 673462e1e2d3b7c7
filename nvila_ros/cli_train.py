# SPDX-License-Identifier: Apache-2.0
"""`nvila train` and `nvila assemble`: the stages, and the checkpoint that the first starts from."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvila_ros.cli_options import JsonOption, print_json
from nvila_ros.errors import ConfigError

if TYPE_CHECKING:
    from nvila_ros.training.stage_recipe import StageRecipe

app = typer.Typer()

SHOWN_COLUMNS = 80


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's file, or a shipped one as FAMILY/STAGE.")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--all", help="Run all seven stages of this family, in order.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, bit for bit.")
    ] = False,
    override: Annotated[
        list[str] | None, typer.Option(help="key.key=value of the recipe; may be repeated.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from.", show_default="the stage before"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs: RUNS/FAMILY/STAGE.")] = Path("runs"),
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU though there is a GPU.")] = (
        False
    ),
    show: Annotated[
        bool, typer.Option("--show", help="Only show the recipe beside the paper's values.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a stage, or with --all a family's whole chain; each starts from the last one's output.

    Several GPUs: accelerate launch --config_file training/launch/FILE -m nvila_ros.cli train ...
    """
    from nvila_ros.training.stage_recipe import STAGES, load_stage, recipe_path

    if (recipe is None) == (family is None):
        raise ConfigError("give either a recipe or --all FAMILY; nvila train --all nano, for one")
    overrides = tuple(override or ())
    paths = [find_recipe(recipe)] if recipe else [recipe_path(str(family), s) for s in STAGES]
    if show:
        show_recipes([load_stage(path, overrides) for path in paths], as_json=as_json)
        return
    from nvila_ros.training.train import (
        RunOptions,
        is_first_rank,
        part_ranks,
        run_chain,
        run_stage,
    )

    options = RunOptions(runs=runs, resume=resume, start=start, overrides=overrides, use_cpu=cpu)
    output = run_chain(family, options) if family else run_stage(paths[0], options)
    part_ranks()
    if not is_first_rank():
        return
    if as_json:
        print_json({"model": str(output)})
    else:
        sys.stdout.write(f"{output}\n")


@app.command()
def assemble(
    family: Annotated[str, typer.Argument(help="Family whose sizes the parts must have.")],
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    vision_tower: Annotated[Path, typer.Option(help="Folder of a SigLIP tower.")],
    llm: Annotated[Path, typer.Option(help="Folder of a decoder with its tokenizer.")],
    seed: Annotated[int, typer.Option(help="Of the projector's random weights.")] = 1,
) -> None:
    """Join a released tower and decoder by a random projector: the start of stage 1."""
    from nvila_ros.training.assemble import assemble as run

    run(family, vision_tower, llm, out, seed=seed)
    sys.stdout.write(f"{out}\n")


def find_recipe(name: str) -> Path:
    """A recipe's file, or the shipped one that FAMILY/STAGE names."""
    from nvila_ros.training.stage_recipe import families, recipe_path

    if Path(name).is_file():
        return Path(name)
    family, _, stage = name.removesuffix(".yaml").partition("/")
    if family in families() and stage:
        return recipe_path(family, stage)
    raise ConfigError(
        f"there is no recipe {name}; give a file, or one of the families {', '.join(families())} "
        "with a stage, for instance nano/4_image_sft"
    )


def show_recipes(recipes: list[StageRecipe], *, as_json: bool) -> None:
    """What each stage does, and beside it what the paper did."""
    rows = [recipe_row(recipe) for recipe in recipes]
    if as_json:
        print_json({"stages": rows})
        return
    for row in rows:
        typer.echo("\n".join(recipe_lines(row)) + "\n")


def recipe_lines(row: dict) -> list[str]:
    """One stage as a block that fits 80 columns; the paper's value below ours where both are."""
    paper = row["paper"] or {}
    global_batch = paper.get("global_batch")
    entries = (
        ("learns", row["learns"], paper.get("learns")),
        ("rates", row["rates"], paper.get("learning_rate")),
        ("a step", row["step"], global_batch and f"{global_batch} samples"),
        ("tokens", f"at most {row['max_tokens']} packed", paper.get("max_length")),
        ("length", row["length"], None),
        ("data", row["data"], paper.get("data")),
    )
    lines = [*textwrap.wrap(f"{row['stage']}: {row['title']}", SHOWN_COLUMNS)]
    for name, ours, theirs in entries:
        lines += _wrapped(f"  {name:<8}", ours)
        if theirs is not None:
            lines += _wrapped("    paper ", str(theirs))
    return lines


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, SHOWN_COLUMNS, initial_indent=start, subsequent_indent=" " * len(start)
    )


def recipe_row(recipe: StageRecipe) -> dict:
    """One stage as text."""
    from dataclasses import asdict

    parts = recipe.learn.parts
    schedule = recipe.schedule
    length = f"{schedule.steps} steps" if schedule.steps else f"{schedule.samples} samples"
    return {
        "stage": recipe.stage,
        "title": recipe.title,
        "learns": ", ".join(parts),
        "rates": ", ".join(f"{getattr(recipe.learn, part):g}" for part in parts),
        "step": f"{recipe.batch.sequences} packed sequences",
        "max_tokens": recipe.data.loader.max_tokens,
        "length": length,
        "data": ", ".join(f"{s.name} x{s.weight:g}" for s in recipe.data.sources),
        "paper": asdict(recipe.paper) if recipe.paper else None,
    }

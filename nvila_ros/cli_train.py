# SPDX-License-Identifier: Apache-2.0
"""`nvila train` and `nvila assemble`: the stages, and the checkpoint that the first starts from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvila_ros.cli_options import JsonOption, print_json
from nvila_ros.errors import ConfigError

if TYPE_CHECKING:
    from nvila_ros.training.stage_recipe import StageRecipe

app = typer.Typer()


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
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{recipes[0].family}: ours / the paper's", show_lines=True)
    for title in ("stage", "learns", "rates", "a step", "tokens", "length", "data"):
        table.add_column(title, overflow="fold")
    for row in rows:
        paper = row["paper"] or {}
        cells = (
            (row["learns"], paper.get("learns")),
            (row["rates"], paper.get("learning_rate")),
            (row["step"], f"{paper['global_batch']} samples" if paper else None),
            (str(row["max_tokens"]), paper.get("max_length")),
            (row["length"], None),
            (row["data"], paper.get("data")),
        )
        joined = [ours if theirs is None else f"{ours}\n/ {theirs}" for ours, theirs in cells]
        table.add_row(row["stage"], *joined)
    Console().print(table)


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

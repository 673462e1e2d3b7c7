# SPDX-License-Identifier: Apache-2.0
"""Runs a stage, or a family's whole chain: start checkpoint in, the next one's start out.

RUNS/nano/1_align/    recipe.json  log.jsonl  tensorboard/  checkpoints/  model/
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nvila_ros.errors import ConfigError, TrainingError
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.mixture import make_loader
from nvila_ros.training.distributed import Ranks, start_ranks
from nvila_ros.training.engine import Batches, Engine, recipe_record
from nvila_ros.training.family import (
    change_network,
    check_start,
    from_scratch,
    load_family,
    load_start,
)
from nvila_ros.training.monitor import Monitor, cut_log
from nvila_ros.training.run_state import newest
from nvila_ros.training.stage_output import MODEL_FOLDER, save_adapted, save_output
from nvila_ros.training.stage_recipe import (
    RECIPES,
    STAGES,
    StageRecipe,
    families,
    load_stage,
    recipe_path,
)

START_PLACE = "{start}"  # in a source's options: a model that drives starts where the stage does
# (recipe, tokenizer, model, ranks) -> this rank's batches
OpenBatches = Callable[[StageRecipe, Tokenizer, Nvila, Ranks], Batches]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a recipe is run; none of it changes what is learned."""

    runs: Path = Path("runs")
    resume: bool = False
    start: Path | None = None  # instead of the stage before, or of random weights
    overrides: tuple[str, ...] = ()
    use_cpu: bool = False
    stop_after: int | None = None  # steps; for tests


def run_stage(
    path: Path, options: RunOptions, open_batches: OpenBatches | None = None
) -> Path | None:
    """Trains one stage and returns its model's folder; None where `stop_after` ended it early."""
    recipe = load_stage(path, options.overrides)
    folder = options.runs / recipe.family / recipe.stage
    family = load_family(_family_folder(path, recipe.family))
    start = start_of(recipe, options)
    recipe = with_start(recipe, start)
    if start is not None:
        check_start(family, start)  # before any process group, so that the message stands alone
    if options.resume and (folder / MODEL_FOLDER).exists():
        return folder / MODEL_FOLDER
    if recipe.adapt.has_lora:
        _kept_start(folder, start)
    checkpoint = _checkpoint(folder, options.resume)
    ranks = start_ranks(recipe, use_cpu=options.use_cpu)
    if ranks.is_main:
        _record(folder, recipe, options, checkpoint)
    ranks.wait()
    if start is None:
        model, tokenizer = from_scratch(family, recipe.engine.seed)
    else:
        is_empty = ranks.kind == "fsdp" and not ranks.is_main
        model, tokenizer = load_start(family, start, is_empty=is_empty)
        if is_empty:
            model.to_empty(device="cpu")  # memory is taken only where it is written to
    change_network(model, tokenizer, recipe.network)
    batches = (open_batches or open_mixture)(recipe, tokenizer, model, ranks)
    config = model.config
    names = [config.time_token_format.format(t=t) for t in range(config.num_time_tokens)]
    time_ids = [tokenizer.id(name) for name in names]
    engine = Engine(recipe, model, batches, ranks, folder, time_ids)
    if checkpoint is not None:
        engine.resume(checkpoint)
        if ranks.is_main:
            cut_log(folder, engine.step)
    title = f"{recipe.family} {recipe.stage}"
    with Monitor(
        folder, title, is_main=ranks.is_main, device=ranks.device, num_ranks=ranks.count
    ) as monitor:
        engine.run(monitor, options.stop_after)
    if options.stop_after is not None and engine.step >= options.stop_after:
        return None
    if recipe.adapt.has_lora:
        kept = _kept_start(folder, start)
        output = save_adapted(folder, ranks, model, recipe.adapt, kept)
    else:
        dtype = getattr(torch, recipe.engine.output_dtype)
        output = save_output(folder, ranks, engine.learner, model, tokenizer, dtype)
    if recipe.score_scenes and ranks.is_main:
        _score(folder, output, recipe, ranks.device)
    ranks.wait()
    return output


def _score(folder: Path, output: Path, recipe: StageRecipe, device: torch.device) -> None:
    from nvila_ros.training.stage_scores import score_output

    for name, tasks in score_output(folder, output, recipe, device).items():
        sys.stderr.write(f"nvila: {recipe.stage} {name}: {json.dumps(tasks)}\n")


def _kept_start(folder: Path, start: Path | None) -> Path:
    """What an adapter is merged into."""
    if start is None:
        raise ConfigError(
            f"{folder}: adapters need a trained start; a stage that begins with random weights "
            "cannot hold them still: set adapt.tower and adapt.llm to full, or give --start"
        )
    return start


def run_chain(family: str, options: RunOptions, stages: Sequence[str] = STAGES) -> Path:
    """All stages of a family, each from the last one's output; finished ones are kept (resume)."""
    output: Path | None = None
    for stage in stages:
        if is_first_rank():
            sys.stderr.write(f"nvila: {family} {stage}\n")
        own = dataclasses.replace(options, start=options.start if stage == stages[0] else None)
        output = run_stage(recipe_path(family, stage), own)
    assert output is not None
    return output


def is_first_rank() -> bool:
    """Whether this process speaks for all, known before they have met."""
    return os.environ.get("RANK", "0") == "0"


def part_ranks() -> None:
    """Leaves the group of processes that the stages were trained in."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start_of(recipe: StageRecipe, options: RunOptions) -> Path | None:
    """The start checkpoint: what was asked for, the output of the stage before, or none."""
    if options.start is not None:
        return options.start
    if recipe.number == 1:
        return None
    return options.runs / recipe.family / STAGES[recipe.number - 2] / MODEL_FOLDER


def with_start(recipe: StageRecipe, start: Path | None) -> StageRecipe:
    """The recipe whose sources' options know where `{start}`, the checkpoint to start from, is."""
    sources = tuple(
        dataclasses.replace(
            source,
            options={
                key: str(start) if value == START_PLACE else value
                for key, value in source.options.items()
                if value != START_PLACE or start is not None
            },
        )
        for source in recipe.data.sources
    )
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sources=sources))


def open_mixture(recipe: StageRecipe, tokenizer: Tokenizer, model: Nvila, ranks: Ranks) -> Batches:
    """The recipe's data for this rank."""
    settings = recipe.data.loader
    multiple = math.lcm(settings.multiple, recipe.precision.token_multiple)
    loader = dataclasses.replace(
        settings, multiple=multiple, pins_memory=ranks.device.type == "cuda"
    )
    mixture = dataclasses.replace(recipe.data, loader=loader)
    return make_loader(mixture, tokenizer, model.config, rank=ranks.rank, num_ranks=ranks.count)


def _family_folder(path: Path, family: str) -> Path:
    """Beside the recipe, or the shipped one of that name."""
    if (path.parent / "family.yaml").is_file():
        return path.parent
    if (RECIPES / family / "family.yaml").is_file():
        return RECIPES / family
    raise ConfigError(
        f"{path}: the family {family!r} has no family.yaml beside the recipe, and is none of the "
        f"shipped ones: {', '.join(families())}"
    )


def _checkpoint(folder: Path, resume: bool) -> Path | None:
    """Where to go on; an error where a run would be overwritten unasked."""
    found = newest(folder / "checkpoints")
    if resume:
        return found
    if found is not None or (folder / MODEL_FOLDER).exists():
        raise TrainingError(
            f"{folder} holds a run already; go on with --resume, or remove the folder to start anew"
        )
    return None


def _record(
    folder: Path, recipe: StageRecipe, options: RunOptions, checkpoint: Path | None
) -> None:
    """Writes `recipe.json`; a resumed run must be of the same recipe, save how it is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path, record = folder / "recipe.json", recipe_record(recipe)
    if checkpoint is not None:
        before = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["recipe"]
        changed = [key for key in record if key != "engine" and before.get(key) != record[key]]
        if changed:
            raise ConfigError(
                f"{folder} was trained with other {', '.join(changed)} than this recipe has; "
                "resume with the same recipe and overrides, or start anew in another --runs folder"
            )
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""A stage's result: the released three-folder layout, written aside and renamed when whole."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvila_ros.errors import NvilaError, TrainingError
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.weights import stored_specifications
from nvila_ros.models.writing import PartWriter
from nvila_ros.training.adapter_files import merge, save_adapter
from nvila_ros.training.adapters import AdaptConfig
from nvila_ros.training.distributed import Ranks
from nvila_ros.training.sharded import whole
from nvila_ros.training.stage_recipe import PARTS

MODEL_FOLDER = "model"


def save_output(
    folder: Path, ranks: Ranks, learner: Any, model: Nvila, tokenizer: Tokenizer, dtype: torch.dtype
) -> Path:
    """Writes `folder`/model, tensor by tensor: a sharded network is never whole on one rank.

    Every rank has to call it; TrainingError on all of them where the main one cannot write.
    """
    target, aside = folder / MODEL_FOLDER, folder / f".unfinished-{MODEL_FOLDER}"
    gathered: dict[str, Tensor] | None = None
    if ranks.kind == "deepspeed":
        gathered = ranks.accelerator.get_state_dict(learner) or {}
    problem: Exception | None = None
    with contextlib.ExitStack() as stack:
        writers: dict[str, PartWriter] = {}
        try:
            if ranks.is_main:
                shutil.rmtree(aside, ignore_errors=True)
                writers = {
                    part: stack.enter_context(_writer(aside, model, part, dtype, gathered))
                    for part in PARTS
                }
        except (OSError, NvilaError) as error:
            problem = error
        for part in PARTS:
            for key, shard in _tensors(model, part, gathered):
                tensor = whole(shard)  # all ranks, even after an error on the main one
                if ranks.is_main and problem is None:
                    try:
                        writers[part].write(key, tensor)
                    except (OSError, NvilaError) as error:
                        problem = error
        try:
            if ranks.is_main and problem is None:
                save_config(aside, model.config, str(dtype).removeprefix("torch."))
                tokenizer.save(aside / "llm")
                for writer in writers.values():
                    writer.finish()
                if target.exists():
                    shutil.rmtree(target)
                aside.replace(target)
        except (OSError, NvilaError) as error:
            problem = error
    if not ranks.all_agree(problem is None):
        if ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(
            f"the stage is trained, but {target} could not be written ({problem or 'main rank'}); "
            "make room, then run it again with --resume: nothing is trained twice"
        ) from problem
    return target


def save_adapted(
    folder: Path, ranks: Ranks, model: Nvila, config: AdaptConfig, start: Path
) -> Path:
    """Writes `folder`/adapter, and merged into the stage's start as `folder`/model."""
    target, aside = folder / MODEL_FOLDER, folder / f".unfinished-{MODEL_FOLDER}"
    problem: Exception | None = None
    try:
        save_adapter(folder / "adapter", model, config, writes=ranks.is_main)
        if ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            merge(folder / "adapter", start, aside)
            aside.replace(target)
    except (OSError, NvilaError) as error:
        problem = error
    if not ranks.all_agree(problem is None):
        raise TrainingError(
            f"the stage is trained, but {target} could not be written ({problem or 'main rank'}); "
            "make room, then run it again with --resume: nothing is trained twice"
        ) from problem
    return target


def _tensors(
    model: Nvila, part: str, gathered: dict[str, Tensor] | None
) -> list[tuple[str, Tensor]]:
    """The part's tensors by released name, sharded or not."""
    if gathered is None:
        return [*model.get_submodule(part).state_dict().items()]
    prefix = f"model.{part}."  # of the learner
    return [
        (key.removeprefix(prefix), tensor)
        for key, tensor in gathered.items()
        if key.startswith(prefix)
    ]


def _writer(
    folder: Path, model: Nvila, part: str, dtype: torch.dtype, gathered: dict[str, Tensor] | None
) -> PartWriter:
    (folder / part).mkdir(parents=True, exist_ok=True)
    if gathered is not None:
        specifications = {
            key: (dtype, tuple(tensor.shape)) for key, tensor in _tensors(model, part, gathered)
        }
    else:
        specifications = stored_specifications(
            model.get_submodule(part), model.config.language, dtype
        )
    return PartWriter(folder / part, specifications)

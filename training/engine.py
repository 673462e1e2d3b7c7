# SPDX-License-Identifier: Apache-2.0
"""The loop of a stage: batches in, optimizer steps and checkpoints out, on one rank or on 128."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nvila_ros.errors import TrainingError
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.adapters import adapt
from nvila_ros.training.compiled import compile_layers
from nvila_ros.training.data.packing import PackedBatch
from nvila_ros.training.distributed import Ranks
from nvila_ros.training.flops import batch_flops
from nvila_ros.training.fp8 import make_adamw, to_float8
from nvila_ros.training.learner import Learner, checkpoint_layers, freeze, parameter_groups
from nvila_ros.training.monitor import Monitor, StepReport
from nvila_ros.training.run_state import RunState
from nvila_ros.training.schedule import is_over, rate_factor, set_rates, stage_progress
from nvila_ros.training.stage_recipe import StageRecipe
from nvila_ros.training.tower_layers import fuse_tower

BAD_BATCH_FILE = "not_finite.json"


class Batches(Protocol):
    """This rank's packed batches, without end; its state is that of what was taken so far."""

    def __iter__(self) -> Iterator[PackedBatch]:
        """Itself, or an iterator that `state_dict` knows about."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes there."""


class Engine:
    """One stage on this rank."""

    def __init__(
        self,
        recipe: StageRecipe,
        model: Nvila,
        batches: Batches,
        ranks: Ranks,
        folder: Path,
        time_ids: Sequence[int] = (),
    ) -> None:
        """`model` is a network in float32 on the CPU, `time_ids` its time tokens in order."""
        self.recipe, self.model, self.ranks, self.folder = recipe, model, ranks, folder
        self.batches = batches
        self.step = self.samples = 0
        if recipe.precision.optimizer_states == "float8":
            model.to(torch.bfloat16)
        torch.manual_seed(recipe.engine.seed)
        if ranks.kind == "fsdp":  # shards on its own, and wants one dtype in a layer
            adapt(model, recipe.adapt)
        else:  # float8 and 4-bit linears are what the device can compute
            dtype = recipe.precision.dtype
            adapt(model, recipe.adapt, device=ranks.device, frozen_dtype=dtype)
        freeze(model, recipe)
        to_float8(model, recipe.precision)
        _speed_up(model, recipe, ranks)
        if recipe.engine.checkpoint_layers:
            checkpoint_layers(model)
        schedule = recipe.schedule
        optimizer = make_adamw(
            parameter_groups(model, recipe),
            recipe.precision,
            betas=(schedule.beta1, schedule.beta2),
            eps=schedule.epsilon,
        )
        smoothing = (time_ids, recipe.time_std) if recipe.time_std is not None else ()
        learner = Learner(model, recipe.loss, recipe.precision.dtype, *smoothing)
        torch.manual_seed(recipe.engine.seed + 1 + ranks.rank)  # dropout differs between ranks
        self.learner, self.optimizer = ranks.accelerator.prepare(learner, optimizer)
        self.learner.train()
        self.state = RunState(folder, ranks, self.learner, self.optimizer, recipe.engine.keep)

    def resume(self, checkpoint: Path) -> None:
        """Goes on after a saved step as if the run had never stopped."""
        own, shared = self.state.restore(checkpoint)
        self.batches.load_state_dict(own["batches"])
        self.step, self.samples = shared["step"], shared["samples"]

    def run(self, monitor: Monitor, stop_after: int | None = None) -> None:
        """Steps until the stage is over, or until `stop_after` steps are done; saves on the way."""
        schedule, engine = self.recipe.schedule, self.recipe.engine
        iterator = iter(self.batches)
        saved = self.step
        while not is_over(self.step, self.samples, schedule):
            report = self._step(iterator)
            if self.step % engine.log_every == 0 or is_over(self.step, self.samples, schedule):
                monitor.log(report)
            if self.step % engine.save_every == 0:
                self.save()
                saved = self.step
            if stop_after is not None and self.step >= stop_after:
                return
        if saved != self.step:
            self.save()

    def save(self) -> Path:
        """A checkpoint of this step."""
        shared = {"samples": self.samples, "recipe": recipe_record(self.recipe)}
        return self.state.save(self.step, {"batches": self.batches.state_dict()}, shared)

    def _step(self, iterator: Iterator[PackedBatch]) -> StepReport:
        """One optimizer step over the micro-batches of all ranks.

        The loss is the mean over every learned token of the step, wherever it is: each rank adds
        up its tokens and divides by the number of all of them. Gradients are averaged over ranks,
        so the sum is scaled by their number.
        """
        ranks, accelerator = self.ranks, self.ranks.accelerator
        started_s = time.perf_counter()
        micro = [self._next(iterator) for _ in range(ranks.accumulation)]
        wait_s = time.perf_counter() - started_s
        total = self._totals(micro)
        if not total["weight"] > 0.0:
            raise TrainingError(
                f"step {self.step + 1} has no learned token in {int(total['samples'])} samples; "
                "answers are empty or cut off: raise data.loader.max_tokens, or check the data "
                "with `nvila data check`"
            )
        scale = ranks.accumulation * ranks.count / total["weight"]
        progress = stage_progress(self.step, self.samples, self.recipe.schedule)
        set_rates(self.optimizer.param_groups, progress, self.recipe.schedule)
        losses: list[Tensor] = []
        for number, batch in enumerate(micro):
            with ranks.accumulate(self.learner):
                loss = self.learner(batch.to(ranks.device, self._pixel_dtype))
                losses.append(loss.detach().float())
                if number == len(micro) - 1 and ranks.kind == "deepspeed":
                    # It steps in the last backward pass; elsewhere the host need not wait yet.
                    mean = self._mean_loss(losses, micro, total["weight"])
                accelerator.backward(loss * scale)
        if ranks.kind != "deepspeed":
            mean = self._mean_loss(losses, micro, total["weight"])
        norm = self._clip(micro)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.samples = self.step + 1, self.samples + int(total["samples"])
        return StepReport(
            step=self.step,
            progress=stage_progress(self.step, self.samples, self.recipe.schedule),
            loss=mean,
            samples=self.samples,
            step_samples=int(total["samples"]),
            step_tokens=int(total["tokens"]),
            step_targets=int(total["targets"]),
            gradient_norm=norm,
            rate_factor=rate_factor(progress, self.recipe.schedule),
            wall_s=time.perf_counter() - started_s,
            data_wait_s=wait_s,
            flops=total["flops"],
        )

    @property
    def _pixel_dtype(self) -> torch.dtype:
        """Of pictures: what the tower's weights are where nothing is cast on the way."""
        return self.recipe.precision.dtype

    def _next(self, iterator: Iterator[PackedBatch]) -> PackedBatch:
        batch = next(iterator, None)
        if batch is None:
            raise TrainingError(
                f"the data ended at step {self.step + 1}; give sources that repeat, or fewer steps"
            )
        return batch

    def _totals(self, micro: list[PackedBatch]) -> dict[str, float]:
        """What the step holds over all ranks."""
        adapts = self.recipe.adapted_parts
        learns = [part for part in self.recipe.learn.parts if part not in adapts]
        counts = {
            "weight": sum(float(batch.weights.double().sum()) for batch in micro),
            "samples": float(sum(len(batch.lengths) for batch in micro)),
            "tokens": float(sum(sum(batch.lengths) for batch in micro)),
            "targets": float(sum(batch.num_targets for batch in micro)),
            "flops": sum(
                batch_flops(
                    self.model.config,
                    batch.lengths,
                    len(batch.pixels),
                    batch.num_targets,
                    learns,
                    adapts,
                )
                for batch in micro
            ),
        }
        # One process need not ask the device, which is still busy with the step before.
        device = self.ranks.device if self.ranks.count > 1 else "cpu"
        values = torch.tensor([*counts.values()], dtype=torch.float64, device=device)
        return dict(zip(counts, self.ranks.sum(values).tolist(), strict=True))

    def _mean_loss(self, losses: list[Tensor], micro: list[PackedBatch], weight: float) -> float:
        """Over all learned tokens of the step; stops the run on all ranks if it is no number."""
        mean = self.ranks.sum(torch.stack(losses).sum().double()).item() / weight
        if not math.isfinite(mean):
            finite = [bool(torch.isfinite(loss)) for loss in losses]
            suspects = [b for b, is_finite in zip(micro, finite, strict=True) if not is_finite]
            self._stop("loss", mean, suspects)
        return mean

    def _clip(self, micro: list[PackedBatch]) -> float | None:
        """The gradient's norm before clipping, over all parts; stops the run if it is no number."""
        limit = self.recipe.schedule.max_gradient_norm
        parameters = [p for p in self.learner.parameters() if p.requires_grad]
        norm = self.ranks.accelerator.clip_grad_norm_(parameters, limit or math.inf)
        if norm is None:  # DeepSpeed before its first step
            return None
        value = float(norm)
        if not math.isfinite(value) and self.ranks.kind != "deepspeed":
            self._stop("gradient", value, micro)
        return value

    def _stop(self, what: str, value: float, suspects: list[PackedBatch]) -> None:
        """TrainingError that names the samples; the newest checkpoint is from before this step."""
        from accelerate.utils import gather_object

        keys = [
            f"{source}/{key}"
            for batch in suspects
            for source, key in zip(batch.sources, batch.keys, strict=True)
        ]
        everyone = gather_object(keys) if self.ranks.count > 1 else keys
        path = self.folder / BAD_BATCH_FILE
        if self.ranks.is_main:
            content = {"step": self.step + 1, "what": what, "value": str(value), "keys": everyone}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shown = ", ".join(everyone[:5]) + (", ..." if len(everyone) > 5 else "")
        raise TrainingError(
            f"the {what} of step {self.step + 1} is {value}; nothing of this step was learned and "
            f"the last checkpoint is kept. Samples in the batch: {shown} (all in {path}). Look at "
            "them with `nvila data check`, lower the learning rate or set "
            "schedule.max_gradient_norm, then go on with --resume"
        )


def _speed_up(model: Nvila, recipe: StageRecipe, ranks: Ranks) -> None:
    """Compiles layers, and lets the tower's train by `fused_layer`, as the recipe says."""
    compiles = recipe.engine.compile_layers
    if compiles is None:
        compiles = ranks.device.type == "cuda"
    if compiles:
        compile_layers(model)
    if recipe.engine.fuse_tower and ranks.kind in ("one", "ddp"):  # elsewhere weights are in pieces
        fuse_tower(model)


def recipe_record(recipe: StageRecipe) -> dict[str, Any]:
    """A recipe as JSON can hold it."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))

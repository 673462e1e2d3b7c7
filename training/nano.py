# SPDX-License-Identifier: Apache-2.0
"""Trains the small model while fleets drive: see, drive, then learn from its own mistakes."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from nvila_ros.errors import TrainingError
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.batches import Batch, BatchMaker
from nvila_ros.training.checkpoint import NETWORK_FILE, save_run
from nvila_ros.training.collector import Collector
from nvila_ros.training.fleet_pool import FleetPool
from nvila_ros.training.fleet_settings import EXAM, ORACLE, STUDENT, FleetSettings
from nvila_ros.training.graphs import Captured
from nvila_ros.training.objectives import AnswerTable, Objective, TrainingHeads
from nvila_ros.training.optimizer import make_optimizers, set_learning_rate, warmup_stable_decay
from nvila_ros.training.recipe import NanoRecipe, Stage
from nvila_ros.training.replay import FrameRing, Replay
from nvila_ros.training.sequences import SequenceBuilder
from nvila_ros.training.step_guard import StepGuard
from nvila_ros.training.student import Student

LOG_EVERY_S = 10.0
SAVE_EVERY_S = 120.0
SWITCH_INTERVAL_S = 5e-4  # between the trainer's thread and the collector's


class NanoTrainer:
    """Owns the model and the replay: one thread steps, the collector's fills the replay."""

    def __init__(
        self, recipe: NanoRecipe, model: Nvila, sequences: SequenceBuilder, out: Path
    ) -> None:
        self.recipe, self.model, self.sequences, self.out = recipe, model, sequences, out
        self.device = model.device
        torch.manual_seed(recipe.seed)
        self.rng = np.random.default_rng(recipe.seed)
        self.heads = TrainingHeads(model).to(self.device)
        answers = AnswerTable(sequences.answers, sequences.pad_id).to(self.device)
        config = model.config
        size = config.vision.image_size
        feature_shape = (config.tokens_per_frame, config.language.hidden_size)
        self.ring = FrameRing(recipe.ring_frames, size, self.device, feature_shape)
        self.replay = Replay(self.ring)
        self.objective = Objective(model, self.heads, answers, sequences, recipe, self.ring)
        self.optimizers = make_optimizers(
            [model, self.heads], recipe.matrix_lr, recipe.other_lr, recipe.weight_decay
        )
        self.parameters = [*model.parameters(), *self.heads.parameters()]
        self.guard = StepGuard(self.parameters, recipe.max_gradient_norm)
        num_patches = config.vision.grid_side**2
        self.batches = BatchMaker(self.replay, sequences, recipe, self.device, num_patches)
        captured = recipe.graphs and self.device.type == "cuda"
        self.student = Student(model, answers, sequences, self.ring, captured)
        self.settings = FleetSettings(
            num_robots=recipe.num_robots,
            num_rounds=recipe.num_rounds,
            image_size_px=size,
            patches_per_side=config.vision.grid_side,
            searches=recipe.searches,
            num_twins=recipe.num_twins,
            network=recipe.network,
        )
        self.shares = torch.zeros(2, device=self.device)  # drive and see weights of the stage
        self.shares_of: Stage | None = None
        self.micro_batch = Captured(self._micro_batch, captured)
        self.batch: Batch
        self.sums: torch.Tensor  # of losses since the last line of the log, then how many
        self.loss_names: list[str] = []
        self.num_steps = self.num_logged_steps = 0
        self.started_s = self.ready_s = time.monotonic()
        self.batch_s = 0.0

    def run(self) -> None:
        """Trains for the recipe's minutes, logs and saves on the way, and saves at the end."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        first_seed = 1_000 + self.recipe.seed * 300_000 % 600_000
        pool = FleetPool(self.recipe.num_workers, self.settings, first_seed)
        self.collector = Collector(pool, self.replay, self.student, self.settings_now)
        try:
            self.prepare()
            self.ready_s = time.monotonic()
            print(f"ready after {self.ready_s - self.started_s:.1f} s", flush=True)
            self.collector.start()
            self._train()
            self.save()  # before anything that may hang: these are the weights of the last rate
            print("saved", flush=True)
        finally:
            self.collector.stop()
            pool.close()
        self.log(self.stage(), 1.0)

    def prepare(self) -> None:
        """Compiles and records the step and the student on empty batches; no weight changes."""
        self.batch = self.batches.empty()
        if self.device.type == "cuda":
            self.micro_batch(self.batch, self.shares)
            self.student.capture()
            torch.cuda.synchronize()
        self.guard.clear()
        if self.loss_names:
            self.sums.zero_()

    def _train(self) -> None:
        logged_s = saved_s = time.monotonic()
        while (progress := self.progress()) < 1.0:
            stage = self.recipe.stage_at(progress)
            self.collector.check()
            if self.is_ready() and not self.is_ahead():
                self.step(stage, progress)
            else:
                time.sleep(0.005)
            now_s = time.monotonic()
            if now_s - logged_s > LOG_EVERY_S:
                self.log(stage, progress)
                logged_s = now_s
            if now_s - saved_s > SAVE_EVERY_S:
                self.save()
                saved_s = now_s

    def progress(self) -> float:
        """Share of the run that is over: of its time or of its steps, whichever is more."""
        over_s = self.started_s + 60.0 * self.recipe.minutes
        of_time = (time.monotonic() - self.ready_s) / (over_s - self.ready_s)
        return max(of_time, self.num_steps / self.recipe.max_steps if self.recipe.max_steps else 0)

    def stage(self) -> Stage:
        """The stage under way."""
        return self.recipe.stage_at(self.progress())

    def settings_now(self) -> FleetSettings:
        """How fleets that begin a round now drive."""
        stage = self.stage()
        return replace(
            self.settings, student_share=stage.student_share, exam_share=stage.exam_share
        )

    def is_ready(self) -> bool:
        """Whether there is enough to fill a micro-batch several times over."""
        enough = self.replay.num_decisions >= 2 * self.recipe.num_decisions
        return enough and len(self.replay.views) >= 2 * self.recipe.num_views

    def is_ahead(self) -> bool:
        """Whether decisions were shown often enough until fleets send more."""
        recipe = self.recipe
        shown = self.num_steps * recipe.micro_batches * recipe.num_decisions
        allowed = (recipe.max_reuse or float("inf")) * max(1, self.collector.num_decisions)
        return shown > allowed

    def step(self, stage: Stage, progress: float) -> None:
        """One optimizer step over the recipe's micro-batches."""
        recipe = self.recipe
        factor = warmup_stable_decay(progress, recipe.warmup, recipe.decay)
        set_learning_rate(self.optimizers, factor)
        if stage is not self.shares_of:  # a copy from memory that is not pinned waits for the GPU
            self.shares.copy_(torch.tensor([stage.drive_weight, stage.see_weight]))
            self.shares_of = stage
        apartments: set[int] = set()
        for _ in range(recipe.micro_batches):
            begin_s = time.perf_counter()
            arrays = self.batches.arrays(self.rng)
            apartments |= self.batches.apartments
            self.batch_s += time.perf_counter() - begin_s
            self.batch.copy_from(arrays)
            self.micro_batch(self.batch, self.shares)
        norm = self.guard.clip()
        self.sums[-2] += torch.where(norm.isfinite(), norm, 0.0) * recipe.micro_batches
        for optimizer in self.optimizers:
            optimizer.step()
        self.guard.clear()
        self.num_steps += 1
        self.guard.queue(self.num_steps, norm, f"apartments {sorted(apartments)}")

    def _micro_batch(self, batch: Batch, shares: torch.Tensor) -> torch.Tensor:
        """Adds a micro-batch's gradients, and its losses to the sums where they are numbers."""
        losses = self.objective.losses(batch, shares)
        (losses["total"] / self.recipe.micro_batches).backward()
        if not self.loss_names:
            self.loss_names = [*losses, "gradient_norm"]
            self.sums = torch.zeros(len(self.loss_names) + 1, device=self.device)
        values = torch.stack([value.detach().float() for value in losses.values()])
        is_finite = values.isfinite().all()
        self.sums[:-2] += torch.where(is_finite, values, 0.0)
        self.sums[-1] += is_finite
        return self.sums

    def log(self, stage: Stage, progress: float) -> None:
        """One JSON line: losses since the last one, rates and success so far."""
        seconds = time.monotonic() - self.started_s
        has_stepped = self.num_steps > self.num_logged_steps
        self.num_logged_steps = self.num_steps
        collector = self.collector
        line: dict[str, float | str] = {
            "s": round(seconds, 1),
            "stage": stage.name,
            "progress": round(progress, 4),
            "steps": self.num_steps,
            "frames": collector.num_frames,
            "decisions": collector.num_decisions,
            "driven": collector.num_episodes,
            "twin_decisions": collector.num_twin_decisions,
            "episodes": len(self.replay.episodes),
            "views": len(self.replay.views),
            # Seconds in all: batches made, waits for the device; fleets waited for, answered.
            "batch_s": round(self.batch_s, 1),
            "device_s": round(self.guard.waited_s, 1),
            "poll_s": round(collector.waited_s, 1),
            "answer_s": round(collector.answered_s, 1),
        }
        if has_stepped:
            *sums, count = self.sums.tolist()
            for name, value in zip(self.loss_names, sums, strict=True):
                line[name] = round(value / max(count, 1.0), 4)
            self.sums.zero_()
            line["skipped"] = self.guard.num_skipped
        for driver, name in ((ORACLE, "oracle"), (STUDENT, "student"), (EXAM, "exam")):
            if collector.results[driver]:
                line[f"{name}_success"] = round(float(np.mean(collector.results[driver])), 3)
        if self.device.type == "cuda":
            line["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        print(json.dumps(line), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Writes the weights under the run's folder, the last good one replaced atomically."""
        self.guard.finish()
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise TrainingError(
                f"after {self.num_steps} steps weights are not finite; expected numbers. What was "
                f"saved in {self.out} before is kept: go on from it with smaller learning rates"
            )
        save_run(self.out, self.model, self.heads, self.optimizers)
        (self.out / NETWORK_FILE).write_text(json.dumps(asdict(self.recipe.network)) + "\n")

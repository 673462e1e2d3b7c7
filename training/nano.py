# SPDX-License-Identifier: Apache-2.0
"""Trains the small model while fleets drive: see, drive, then learn from its own mistakes."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.batches import BatchMaker
from nvila_ros.training.checkpoint import save_run
from nvila_ros.training.fleet import EXAM, ORACLE, STUDENT, FleetSettings
from nvila_ros.training.fleet_pool import Finished, FleetPool, Started, Step
from nvila_ros.training.objectives import AnswerTable, Objective, TrainingHeads
from nvila_ros.training.optimizer import make_optimizers, set_learning_rate, warmup_stable_decay
from nvila_ros.training.recipe import NanoRecipe, Stage
from nvila_ros.training.replay import EpisodeRecord, FrameRing, Replay, ViewRecord
from nvila_ros.training.sequences import SequenceBuilder
from nvila_ros.training.student import Student

LOG_EVERY_S = 10.0
SAVE_EVERY_S = 120.0


class NanoTrainer:
    """Owns the model, the replay and the fleets, and alternates collecting with optimizer steps."""

    def __init__(self, recipe: NanoRecipe, model: Nvila, sequences: SequenceBuilder, out: Path):
        self.recipe, self.model, self.sequences, self.out = recipe, model, sequences, out
        self.device = model.device
        torch.manual_seed(recipe.seed)
        self.rng = np.random.default_rng(recipe.seed)
        self.heads = TrainingHeads(model).to(self.device)
        answers = AnswerTable(sequences.answers, sequences.pad_id).to(self.device)
        self.objective = Objective(model, self.heads, answers, sequences, recipe)
        self.optimizers = make_optimizers(
            [model, self.heads], recipe.matrix_lr, recipe.other_lr, recipe.weight_decay
        )
        config = model.config
        size = config.vision.image_size
        feature_shape = (config.tokens_per_frame, config.language.hidden_size)
        self.ring = FrameRing(recipe.ring_frames, size, self.device, feature_shape)
        self.replay = Replay(self.ring)
        self.batches = BatchMaker(self.replay, sequences, recipe, self.device)
        self.student = Student(model, answers, sequences, self.ring)
        self.settings = FleetSettings(
            num_robots=recipe.num_robots,
            image_size_px=size,
            patches_per_side=config.vision.grid_side,
        )
        self.pool: FleetPool  # while it runs
        self.running: dict[int, list[EpisodeRecord]] = {}
        self.drivers: dict[int, np.ndarray] = {}
        self.results: dict[int, deque[bool]] = {
            driver: deque(maxlen=500) for driver in (ORACLE, STUDENT, EXAM)
        }
        self.num_steps = self.num_logged_steps = self.num_frames = self.num_decisions = 0
        self.sums: dict[str, Any] = {}  # numbers and tensors

    def run(self) -> None:
        """Trains for the recipe's minutes, logs and saves on the way, and saves at the end."""
        first_seed = 1_000 + self.recipe.seed * 300_000 % 600_000
        self.pool = FleetPool(self.recipe.num_workers, self.settings, first_seed)
        self.started_s = time.monotonic()
        logged_s = saved_s = self.started_s
        try:
            while (progress := self.progress()) < 1.0:
                stage = self.recipe.stage_at(progress)
                self.collect(stage)
                if self.is_ready():
                    self.step(stage, progress)
                else:
                    time.sleep(0.05)
                now_s = time.monotonic()
                if now_s - logged_s > LOG_EVERY_S:
                    self.log(stage, progress)
                    logged_s = now_s
                if now_s - saved_s > SAVE_EVERY_S:
                    self.save()
                    saved_s = now_s
        finally:
            self.pool.close()
        self.log(stage, 1.0)
        self.save()

    def progress(self) -> float:
        """Share of the run that is over: of its time or of its steps, whichever is more."""
        of_time = (time.monotonic() - self.started_s) / (60.0 * self.recipe.minutes)
        return max(of_time, self.num_steps / self.recipe.max_steps if self.recipe.max_steps else 0)

    def is_ready(self) -> bool:
        """Whether there is enough to fill a micro-batch several times over."""
        enough = self.replay.num_decisions >= 2 * self.recipe.num_decisions
        return enough and len(self.replay.views) >= 2 * self.recipe.num_views

    def collect(self, stage: Stage) -> None:
        """Takes in what the fleets have sent and answers those that ask."""
        asking: list[tuple[int, Step, list[EpisodeRecord]]] = []
        for _ in range(4 * self.recipe.num_workers):
            messages = self.pool.poll()
            if not messages:
                break
            for worker, message in messages:
                if isinstance(message, Started):
                    self.drivers[worker] = message.driver
                    self.running[worker] = [
                        EpisodeRecord(self.sequences.navigation_prompt(text))
                        for text in message.instructions
                    ]
                elif isinstance(message, Step):
                    records = self.take_step(worker, message)
                    if message.asks:
                        asking.append((worker, message, records))
                else:
                    self.finish_fleet(worker, message, stage)
        if asking:
            self.answer(asking)
        self.replay.forget()

    def take_step(self, worker: int, step: Step) -> list[EpisodeRecord]:
        """Stores the step's new frames, decisions and views; returns the active robots' records."""
        labels, frames = step.labels, self.pool.frames[worker]
        spans = [
            frames[robot, first : last + 1]
            for robot, first, last in zip(
                labels.robots, labels.first_frame, labels.last_frame, strict=True
            )
        ]
        tickets = self.ring.put(np.concatenate(spans))
        self.num_frames += len(tickets)
        records = []
        for row, (robot, span) in enumerate(zip(labels.robots, spans, strict=True)):
            record = self.running[worker][robot]
            record.tickets += tickets[: len(span)].tolist()
            tickets = tickets[len(span) :]
            record.shown.append(record.show())
            record.costs.append(labels.costs[row])
            record.targets.append(labels.targets[row])
            record.clause.append(int(labels.clause[row]))
            records.append(record)
        self.num_decisions += len(records)
        for view in labels.views:
            ticket = self.running[worker][view.robot].tickets[view.frame]
            self.replay.views.append(
                ViewRecord(
                    ticket, view.patch_category, view.patch_colour, view.ids, view.supervised
                )
            )
        return records

    def answer(self, asking: list[tuple[int, Step, list[EpisodeRecord]]]) -> None:
        """Lets the student decide for every robot of the asking fleets, in one batch."""
        records = [record for _, _, group in asking for record in group]
        drivers = np.concatenate([self.drivers[worker][s.labels.robots] for worker, s, _ in asking])
        wanted = np.flatnonzero(drivers != ORACLE)
        actions = np.zeros(len(records), np.int64)
        chosen = [records[i] for i in wanted]
        actions[wanted] = self.student.decide(chosen, greedy=drivers[wanted] == EXAM)
        for worker, _, group in asking:
            self.pool.answer(worker, actions[: len(group)])
            actions = actions[len(group) :]

    def finish_fleet(self, worker: int, message: Finished, stage: Stage) -> None:
        """Keeps the episodes, notes the results and starts the worker's next fleet."""
        for record in self.running.pop(worker):
            self.replay.add_episode(record)
        for driver, success in zip(message.driver, message.success, strict=True):
            self.results[int(driver)].append(bool(success))
        shares = {"student_share": stage.student_share, "exam_share": stage.exam_share}
        self.pool.answer(worker, FleetSettings(**{**vars(self.settings), **shares}))

    def step(self, stage: Stage, progress: float) -> None:
        """One optimizer step over the recipe's micro-batches."""
        recipe = self.recipe
        factor = warmup_stable_decay(progress, recipe.warmup, recipe.decay)
        set_learning_rate(self.optimizers, factor)
        for number in range(recipe.micro_batches):
            if number:
                self.collect(stage)  # fleets that ask do not wait for the whole step
            batch = self.batches.make(self.rng)
            losses = self.objective.losses(batch, stage)
            (losses["total"] / recipe.micro_batches).backward()
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
        self.sums["gradient_norm"] = (
            self.sums.get("gradient_norm", 0.0) + norm * recipe.micro_batches
        )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1

    def log(self, stage: Stage, progress: float) -> None:
        """One JSON line: losses since the last one, rates and success so far."""
        seconds = time.monotonic() - self.started_s
        micro_batches = max(1, self.num_steps - self.num_logged_steps) * self.recipe.micro_batches
        self.num_logged_steps = self.num_steps
        line = {
            "s": round(seconds, 1),
            "stage": stage.name,
            "progress": round(progress, 4),
            "steps": self.num_steps,
            "frames": self.num_frames,
            "decisions": self.num_decisions,
            "episodes": len(self.replay.episodes),
            "views": len(self.replay.views),
        }
        for name, value in self.sums.items():
            line[name] = round(float(value) / micro_batches, 4)
        for driver, name in ((ORACLE, "oracle"), (STUDENT, "student"), (EXAM, "exam")):
            if self.results[driver]:
                line[f"{name}_success"] = round(float(np.mean(self.results[driver])), 3)
        if self.device.type == "cuda":
            line["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        self.sums = {}
        print(json.dumps(line), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Writes the weights under the run's folder, the last good one replaced atomically."""
        save_run(self.out, self.model, self.heads)

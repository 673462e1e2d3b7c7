# SPDX-License-Identifier: Apache-2.0
"""Ablations of the small model on one shared corpus.

Fleets render for a while; then every arm trains for the same number of steps, one after another, on
the same decisions, and writes its weights under RUN/arms, where `exams` finds them. What
each arm answers in apartments that none has seen is kept as one row of RUN/held_out.npz per arm.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvila_ros.errors import TrainingError
from nvila_ros.models import weights
from nvila_ros.training.ablation.arms import AblationRecipe, Arm
from nvila_ros.training.ablation.corpus import Decisions, build_decisions, shuffled_rows
from nvila_ros.training.ablation.drives import SharedDrives
from nvila_ros.training.ablation.files import save_arm
from nvila_ros.training.ablation.results import HELD_OUT_FILE, LOG_FILE
from nvila_ros.training.ablation.runners import Runner, Views
from nvila_ros.training.ablation.scores import (
    answer_log_probability,
    half_at_random,
    half_by_delta,
    held_out_scores,
)
from nvila_ros.training.optimizer import make_optimizers, set_learning_rate, warmup_stable_decay
from nvila_ros.training.vocabulary import build_sequences

MARGIN = 1.25  # of the time that steps are thought to take: exams run beside them
OVERHEAD_S = 4.0  # of an arm: resetting, scoring, saving
SHAPE_S = 10.0  # of a new shape: compiling with a warm cache, recording
LOG_LINES = 12  # per arm


class Ablations:
    """Owns the shared drives, the released model and the runner of the shape under way."""

    def __init__(self, recipe: AblationRecipe, out: Path, device: torch.device) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.began_s = time.monotonic()
        released, _ = weights.load(recipe.released)
        self.released = released.to(device)
        self.sequences = build_sequences()
        tower = self.released.vision_tower
        self.drives = SharedDrives(recipe, self.sequences, tower, device)
        self.states: dict[str, dict[str, Tensor]] = {}
        self.early: dict[str, Tensor] = {}  # the plain arm after a quarter of its steps
        self.keeps: dict[str, np.ndarray] = {}
        self.answers: dict[str, np.ndarray] = {}
        self.runner: Runner | None = None
        self.shape: object = None
        self.num_steps = self.whole_steps = 0  # common to the arms, once they are planned
        self.step_s = 0.0

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began_s

    def log(self, **line) -> None:
        """One JSON line, on the screen too."""
        text = json.dumps({"s": round(self.seconds(), 1), **line})
        print(text, flush=True)
        with (self.out / LOG_FILE).open("a") as file:
            file.write(text + "\n")

    def run(self) -> None:
        """The corpus, then arm after arm."""
        try:
            self.log(encoded=True, **self.drives.collect())
            for arm in self.recipe.arms:
                if arm.drives != "none" and not self.drives.newer:
                    assert arm.goes_on is not None and self.runner is not None
                    self.runner.load(self.states[arm.goes_on])
                    self.log(**self.drives.collect_newer(self.runner))
                if not self._has_time(arm):
                    self.log(arm=arm.name, left_out="no time")
                    continue
                try:
                    self._train(arm)
                except (TrainingError, torch.cuda.OutOfMemoryError) as error:
                    if arm == self.recipe.arms[0]:
                        raise
                    self.log(arm=arm.name, left_out=str(error))  # the others are worth having
                    self.runner = None
        finally:
            self.drives.close()
        self.log(done=True)

    def _has_time(self, arm: Arm) -> bool:
        left_s = self.recipe.train_until_s - self.seconds()
        if arm.whole or not self.num_steps:
            return left_s > OVERHEAD_S
        return left_s > OVERHEAD_S + arm.cost * self.num_steps * self.step_s

    def _runner(self, arm: Arm) -> Runner:
        shape = (arm.network, arm.whole)
        if self.runner is None or self.shape != shape:
            self.runner, self.shape = None, shape
            gc.collect()
            torch.compiler.reset()  # lets go of the last shape's network
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            begin_s = self.seconds()
            wanted = build_sequences(arm.network)
            drives = self.drives
            ring = drives.ring
            self.runner = Runner(self.recipe, arm, wanted, ring, drives.cache, drives.training)
            self.runner.prepare()
            self.decisions, self.unseen = (
                build_decisions(some, self.sequences, wanted, ring)
                for some in (drives.drives, drives.held_out)
            )
            self.view_table = Views.build(drives.views, wanted, ring)
            self.log(shape=str(arm.network), whole=arm.whole, ready_s=self.seconds() - begin_s)
        return self.runner

    def _plan(self, arm: Arm, runner: Runner) -> None:
        """The common number of steps, from what a step of the first arm takes."""
        runner.reset(arm, self.released.vision_tower, None)
        timed = self.recipe.timed_steps
        order = torch.arange(max(2, timed) * self.recipe.num_decisions) % len(self.decisions)
        self._steps(arm, runner, self.decisions, order, 2)  # kernels are loaded when first used
        begin_s = self.seconds()
        self._steps(arm, runner, self.decisions, order, timed)
        self.step_s = MARGIN * (self.seconds() - begin_s) / timed
        arms = self.recipe.arms
        shapes = len({(other.network, other.whole) for other in arms})
        spare_s = self.recipe.train_until_s - self.seconds() - self.recipe.drives_s
        spare_s -= OVERHEAD_S * len(arms) + SHAPE_S * (shapes - 1)
        steps = int(spare_s / self.step_s / sum(other.cost for other in arms))
        self.num_steps = max(2, min(self.recipe.max_steps, steps))
        self.log(step_ms=1e3 * self.step_s / MARGIN, steps=self.num_steps)

    def _plan_whole(self, arm: Arm, runner: Runner) -> None:
        """Arms that train whole come last and share, in equal numbers of steps, what is left."""
        runner.reset(arm, None, None)
        self._steps(arm, runner, self.decisions, torch.zeros(0), 2)
        begin_s = self.seconds()
        self._steps(arm, runner, self.decisions, torch.zeros(0), self.recipe.timed_steps)
        step_s = (self.seconds() - begin_s) / self.recipe.timed_steps
        count = sum(other.whole for other in self.recipe.arms)
        left_s = self.recipe.train_until_s - self.seconds() - OVERHEAD_S * count
        self.whole_steps = max(2, min(self.recipe.max_steps, int(left_s / count / step_s / 1.1)))
        self.log(whole_step_ms=1e3 * step_s, whole_steps=self.whole_steps)

    def _number(self, arm: Arm) -> int:
        return max(1, round(arm.steps * (self.whole_steps if arm.whole else self.num_steps)))

    def _train(self, arm: Arm) -> None:
        runner = self._runner(arm)
        if arm.whole and not self.whole_steps:
            self._plan_whole(arm, runner)
        elif not self.num_steps:
            self._plan(arm, runner)
        start = self.states[arm.goes_on] if arm.goes_on else None
        runner.reset(arm, self.released.vision_tower, start)
        decisions, order = self._order(arm, runner)
        begin_s = self.seconds()
        num_steps = self._number(arm)
        self._steps(arm, runner, decisions, order, num_steps, logs=True)
        trained_s = self.seconds() - begin_s
        if not arm.whole:
            self.step_s = trained_s / (arm.cost / arm.steps) / num_steps
        state = runner.state()
        if any(other.goes_on == arm.name for other in self.recipe.arms):
            self.states[arm.name] = state
        save_arm(self.out, arm, state)
        self.log(arm=arm.name, steps=num_steps, train_s=trained_s, **self._score(arm, runner))

    def _order(self, arm: Arm, runner: Runner) -> tuple[Decisions, Tensor]:
        """Decisions, and which of them each step shows: (steps * B,) rows."""
        recipe, decisions = self.recipe, self.decisions
        rng = np.random.default_rng([recipe.seed, arm.seed])
        prompts = decisions.prompt.cpu().numpy()
        drives = self.drives.drives
        # The same nested subsets for every seed.
        ranks = np.random.default_rng([recipe.seed, 5]).permutation(len(drives))
        num_episodes = max(1, round(arm.episodes * len(drives)))
        allowed = ranks[prompts] < num_episodes
        if not arm.twins:
            allowed &= ~np.array([drive.is_twin for drive in drives])[prompts]
        if arm.keep != "all":
            allowed &= self._kept(runner, arm.keep)
        rows = np.flatnonzero(allowed)
        self.log(arm=arm.name, decisions=len(rows), episodes=num_episodes)
        total = self._number(arm) * recipe.num_decisions
        if arm.drives == "none":
            return decisions, torch.from_numpy(shuffled_rows(rng, rows, total)).to(self.device)
        newer = self.drives.newer_of(arm.drives)
        joined = build_decisions(drives + newer, self.sequences, runner.sequences, self.drives.ring)
        fresh = np.arange(len(decisions), len(joined))
        self.log(arm=arm.name, newer_episodes=len(newer), newer_decisions=len(fresh))
        half = -(-total // 2)
        pairs = np.stack([shuffled_rows(rng, rows, half), shuffled_rows(rng, fresh, half)], 1)
        return joined, torch.from_numpy(pairs.ravel()[:total]).to(self.device)

    def _kept(self, runner: Runner, keep: str) -> np.ndarray:
        """(N,) bool: half of all decisions, drawn at random or those of the largest Delta."""
        if not self.keeps:
            decisions, before = self.decisions, runner.state()
            costs = decisions.costs[0].cpu().numpy()
            released = {f"model.{k}": v for k, v in self.released.state_dict().items()}
            likes = []
            for state in (released, self.early):
                runner.load(state)
                likes.append(answer_log_probability(costs, runner.scores(decisions)))
            runner.load(before)
            delta = likes[0] - likes[1]
            self.keeps = {
                "delta": half_by_delta(*likes),
                "random": half_at_random(len(delta), self.recipe.seed),
            }
            for name, kept in self.keeps.items():
                actions = np.bincount(costs[kept].argmin(1), minlength=10)
                self.log(keep=name, best_actions=actions.tolist())
            spread = np.percentile(delta, [1, 10, 50, 90, 99]).round(3).tolist()
            large, small = (float(like.mean()) for like in likes)
            self.log(delta_percentiles=spread, large=large, small=small)
        return self.keeps[keep]

    def _steps(
        self,
        arm: Arm,
        runner: Runner,
        decisions: Decisions,
        order: Tensor,
        num_steps: int,
        logs: bool = False,
    ) -> None:
        recipe = self.recipe
        generator = torch.Generator(self.device).manual_seed(arm.seed)
        rng = np.random.default_rng([recipe.seed, arm.seed, 2])
        gain = recipe.again_lr if arm.goes_on else 1.0
        rates = (gain * recipe.matrix_lr, gain * recipe.other_lr)
        optimizers = make_optimizers([runner.model, runner.heads], *rates, 0.05)
        views = torch.from_numpy(
            rng.integers(len(self.drives.views), size=num_steps * recipe.num_views)
        ).to(self.device)
        every, size = max(1, num_steps // LOG_LINES), recipe.num_decisions
        order = order.to(self.device)
        for step in range(num_steps):
            progress = (step + 0.5) / num_steps
            set_learning_rate(optimizers, warmup_stable_decay(progress, 0.04, recipe.decay))
            self._shares(arm, runner, progress, step, num_steps)
            if runner.whole:
                runner.batch.copy_from(runner.maker.arrays(rng))
            else:
                rows = order[step * size : (step + 1) * size]
                chosen = views[step * recipe.num_views : (step + 1) * recipe.num_views]
                runner.batch.fill(decisions, rows, self.view_table, chosen, generator, recipe)
            runner.micro_batch(runner.batch, runner.shares)
            norm = runner.guard.clip()
            for optimizer in optimizers:
                optimizer.step()
            runner.guard.clear()
            runner.guard.queue(step, norm, arm.name)
            if logs and (step + 1) % every == 0:
                values = (runner.sums / every).tolist()
                pairs = zip(runner.loss_names, values, strict=True)
                losses = {name: round(value, 4) for name, value in pairs}
                self.log(arm=arm.name, step=step + 1, skipped=runner.guard.num_skipped, **losses)
                runner.sums.zero_()
            if logs and arm == self.recipe.arms[0] and step + 1 == max(1, num_steps // 4):
                self.early = runner.state()
        runner.guard.finish()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _shares(self, arm: Arm, runner: Runner, progress: float, step: int, steps: int) -> None:
        """A whole network that is asked about views sees for a quarter of its steps first."""
        seeing = runner.whole and arm.see_weight > 0 and progress < 0.25
        if step in (0, -(-steps // 4)):
            wanted = (0.3, 1.0) if seeing else (1.0, arm.see_weight)
            runner.shares.copy_(torch.tensor(wanted))

    def _score(self, arm: Arm, runner: Runner) -> dict[str, float]:
        """Of decisions in apartments that no arm has seen; the rows go to held_out.npz."""
        drives = self.drives
        if runner.whole:
            drives.encode(drives.held_out, runner.model.vision_tower)
        scores = runner.scores(self.unseen)
        if runner.whole:
            drives.encode(drives.held_out, self.released.vision_tower)
        self.answers[f"arm_{arm.name}"] = scores.astype(np.float16)
        costs = self.unseen.costs[0].cpu().numpy()
        held: dict = {"costs": costs, "apartments": self.unseen.apartments, **self.answers}
        temporary = self.out / ".held_out.tmp.npz"
        np.savez_compressed(temporary, **held)
        temporary.replace(self.out / HELD_OUT_FILE)
        return held_out_scores(costs, scores)

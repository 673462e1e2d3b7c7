# SPDX-License-Identifier: Apache-2.0
"""One shape of network with its recorded step, trained anew by every arm that has the shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.ablation.arms import AblationRecipe, Arm
from nvila_ros.training.ablation.corpus import Decisions, PatchCache
from nvila_ros.training.batches import BatchMaker
from nvila_ros.training.graphs import Captured
from nvila_ros.training.mirror import WordSwap
from nvila_ros.training.objectives import AnswerTable, Objective, TrainingHeads, fuse
from nvila_ros.training.recipe import NanoRecipe, Stage
from nvila_ros.training.replay import FrameRing, Replay, ViewRecord
from nvila_ros.training.sequences import SequenceBuilder
from nvila_ros.training.step_guard import StepGuard
from nvila_ros.training.student import branching_place

SCORED_DECISIONS = 256  # at once


def as_nano_recipe(recipe: AblationRecipe, arm: Arm) -> NanoRecipe:
    """What the shared parts of the small model's trainer read."""
    return NanoRecipe(
        minutes=1.0,
        stages=(Stage("arm", 1.0),),
        network=arm.network,
        num_decisions=recipe.whole_decisions,
        num_frames=recipe.whole_frames,
        num_views=recipe.whole_views,
        micro_batches=1,
        stop_weight=recipe.stop_weight,
        compile=recipe.compile,
    )


@dataclass(eq=False)
class Views:
    """Labelled views as tensors; V conversations."""

    slots: Tensor  # (V,) int64
    ids: Tensor  # (2, V, M) int64, as seen and mirrored
    places: Tensor  # (V, K) int64
    weight: Tensor  # (V, K) float32, 1 where a place counts

    @classmethod
    def build(cls, views: list[ViewRecord], sequences: SequenceBuilder, ring: FrameRing) -> Views:
        """Rows as `BatchMaker` makes them."""
        ids = np.full((len(views), sequences.view_length), sequences.pad_id, np.int64)
        places = np.zeros((len(views), sequences.view_places), np.int64)
        weight = np.zeros(places.shape, np.float32)
        for row, view in enumerate(views):
            ids[row, : len(view.ids)] = view.ids
            asked = np.flatnonzero(view.supervised)[: sequences.view_places] - 1
            places[row, : len(asked)], weight[row, : len(asked)] = asked, 1.0
        slots = ring.slots(np.array([view.ticket for view in views]))
        swap = WordSwap(sequences.tokenizer, sequences.config.language.vocab_size)
        arrays = (slots, np.stack([ids, swap(ids)]), places, weight)
        return cls(*(torch.from_numpy(array).to(ring.pixels.device) for array in arrays))


@dataclass(eq=False)
class CachedBatch:
    """As `batches.Batch`, with frames of a `PatchCache`; B decisions of T frames, V views."""

    slots: Tensor  # (B * T + V,) int64
    turned: Tensor  # (B * T + V,) int64, 1 for the mirror image
    shown: Tensor  # (B, T) int64
    ids: Tensor
    lengths: Tensor
    target: Tensor
    taught: Tensor
    geometry: Tensor
    clause: Tensor
    weight: Tensor
    view_ids: Tensor
    view_places: Tensor
    view_weight: Tensor
    patch_category: Tensor  # zeros: a frozen tower has nothing to learn from them
    patch_colour: Tensor

    @classmethod
    def empty(cls, sequences: SequenceBuilder, rows: int, views: int, device: torch.device):
        """Nothing counts yet."""
        frames = sequences.config.num_video_frames
        patches = sequences.config.vision.grid_side**2

        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        def real(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        lengths = whole(rows) + sequences.min_length
        shown = torch.arange(rows * frames, device=device).view(rows, frames)
        return cls(
            whole(rows * frames + views),
            whole(rows * frames + views),
            shown,
            whole(rows, sequences.prompt_length) + sequences.pad_id,
            lengths,
            real(rows, 10) + 0.1,
            whole(rows),
            real(rows, 6),
            whole(rows),
            real(rows),
            whole(views, sequences.view_length) + sequences.pad_id,
            whole(views, sequences.view_places),
            real(views, sequences.view_places),
            whole(views, patches),
            whole(views, patches),
        )

    def fill(
        self,
        decisions: Decisions,
        rows: Tensor,
        views: Views,
        view_rows: Tensor,
        generator: torch.Generator,
        recipe: AblationRecipe,
    ) -> None:
        """Decisions `rows` (B,) and views (V,), half of them turned round; nothing waits."""
        number, frames = self.shown.shape

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, device=rows.device, generator=generator)

        turned = (draw(number) < 0.5).long()
        turned_views = (draw(len(view_rows)) < 0.5).long()
        self.slots[: number * frames] = decisions.shown[rows].flatten()
        self.slots[number * frames :] = views.slots[view_rows]
        self.turned[: number * frames] = turned[:, None].expand(-1, frames).flatten()
        self.turned[number * frames :] = turned_views
        prompts = decisions.prompt[rows]
        self.ids.copy_(decisions.ids[turned, prompts])
        self.lengths.copy_(decisions.lengths[prompts])
        costs = decisions.costs[turned, rows]
        self.target.copy_(torch.softmax(-costs / 0.3, -1))
        gumbel = -torch.log(-torch.log(draw(number, 10).clamp(1e-6, 1 - 1e-6)))
        self.taught.copy_((torch.log(self.target + 1e-12) + gumbel).argmax(1))
        self.geometry.copy_(decisions.targets[turned, rows])
        self.clause.copy_(decisions.clause[rows])
        weight = torch.where(costs.argmin(1) == 0, recipe.stop_weight, 1.0)
        self.weight.copy_(weight / weight.sum())
        self.view_ids.copy_(views.ids[turned_views, view_rows])
        self.view_places.copy_(views.places[view_rows])
        counted = views.weight[view_rows]
        self.view_weight.copy_(counted / counted.sum().clamp_min(1.0))


class CachedObjective(Objective):
    """The same losses from what a frozen tower said of the frames."""

    cache: PatchCache

    def losses(self, batch, shares: Tensor) -> dict[str, Tensor]:
        """As `Objective.losses`; the projector is the first part that learns."""
        codes, scales = self.cache.codes_of(batch.slots, batch.turned)
        num_views = len(batch.view_ids)
        with self.autocast:
            patches, features = self._encode(codes, scales)  # type: ignore[call-arg]
            seen = self._see(patches[-num_views:], features[-num_views:], batch)
            drive = self._drive(features[:-num_views], batch)
        losses = drive | seen
        route = losses["geometry"] + losses["sighting"] + losses["clause"]
        drives = losses["answer"] + self.recipe.route_weight * route
        losses["total"] = shares[0] * drives + shares[1] * losses["question"]
        return losses

    def _encode_pixels(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        patches = patches_of(codes, scales)
        return patches, self.model.mm_projector(patches)


def patches_of(codes: Tensor, scales: Tensor) -> Tensor:
    """What `PatchCache.codes_of` stands for, in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if codes.is_cuda else torch.float32
    return codes.to(dtype) * scales.to(dtype)


class Runner:
    """Model, heads, losses and the recorded step of one shape of network."""

    def __init__(
        self,
        recipe: AblationRecipe,
        arm: Arm,
        sequences: SequenceBuilder,
        ring: FrameRing,
        cache: PatchCache,
        replay: Replay,
    ) -> None:
        self.recipe, self.sequences, self.ring, self.cache = recipe, sequences, ring, cache
        self.whole, device = arm.whole, ring.pixels.device
        self.model = Nvila.from_scratch(sequences.config, seed=arm.seed).to(device)
        self.model.connect(sequences.tokenizer.media_ids, sequences.tokenizer.newline_ids)
        self.model.vision_tower.requires_grad_(arm.whole)
        self.heads = TrainingHeads(self.model).to(device)
        self.answers = AnswerTable(sequences.answers, sequences.pad_id).to(device)
        self.branch = branching_place(self.answers)
        nano = as_nano_recipe(recipe, arm)
        kind = Objective if arm.whole else CachedObjective
        self.objective = kind(self.model, self.heads, self.answers, sequences, nano, ring)
        if isinstance(self.objective, CachedObjective):
            self.objective.cache = cache
            self.batch = CachedBatch.empty(
                sequences, recipe.num_decisions, recipe.num_views, device
            )
        else:
            side = sequences.config.vision.grid_side
            self.maker = BatchMaker(replay, sequences, nano, device, side**2)
            self.batch = self.maker.empty()
        modules: list[nn.Module] = [self.model, self.heads]
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.guard = StepGuard(self.parameters, 1.0)
        self.shares = torch.zeros(2, device=device)
        self.micro_batch = Captured(self._micro_batch, device.type == "cuda")
        self.loss_names: list[str] = []

    def _micro_batch(self, batch, shares: Tensor) -> Tensor:
        losses = self.objective.losses(batch, shares)
        losses["total"].backward()
        if not self.loss_names:
            self.loss_names = list(losses)
            self.sums = torch.zeros(len(losses), device=shares.device)
        self.sums += torch.stack([value.detach().float() for value in losses.values()])
        return self.sums

    def prepare(self) -> None:
        """Compiles and records the step on an empty batch."""
        self.micro_batch(self.batch, self.shares)
        self.guard.clear()
        self.sums.zero_()

    def reset(self, arm: Arm, tower: nn.Module | None, start: dict[str, Tensor] | None) -> None:
        """Fresh weights of the arm's seed, or `start`'s, in the same memory."""
        fresh = Nvila.from_scratch(self.sequences.config, seed=arm.seed)
        torch.manual_seed(arm.seed)
        heads = TrainingHeads(fresh)
        self.model.load_state_dict(fresh.state_dict())
        self.heads.load_state_dict(heads.state_dict())
        if not self.whole and tower is not None:
            self.model.vision_tower.load_state_dict(tower.state_dict())
        if start is not None:
            self.load(start)
        self.guard.clear()
        self.sums.zero_()

    def state(self) -> dict[str, Tensor]:
        """Copies of what learned, heads included."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if not self.whole:
            tensors = {k: v for k, v in tensors.items() if not k.startswith("model.vision_tower.")}
        tensors |= {f"heads.{k}": v for k, v in self.heads.state_dict().items()}
        return {k: v.detach().clone() for k, v in tensors.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """What `state` gave, in place."""
        for prefix, module in (("model.", self.model), ("heads.", self.heads)):
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            module.load_state_dict(part, strict=False)

    @torch.no_grad()
    def scores(self, decisions: Decisions) -> np.ndarray:
        """(N, 10) float32 log probabilities of the answers, where they part, unmirrored."""
        found = []
        places = self.objective.navigation_places
        for begin in range(0, len(decisions), SCORED_DECISIONS):
            rows = slice(begin, begin + SCORED_DECISIONS)
            shown, prompt = decisions.shown[rows], decisions.prompt[rows]
            slots = shown.flatten()
            codes, scales = self.cache.codes_of(slots, torch.zeros_like(slots))
            with self.objective.autocast:
                ids, lengths = decisions.ids[0, prompt], decisions.lengths[prompt]
                for place in range(self.branch):
                    first = self.answers.ids[0, place].expand(len(ids), 1)
                    ids = ids.scatter(1, (lengths + place)[:, None], first)
                features = self.model.mm_projector(patches_of(codes, scales))
                features = features.unflatten(0, shown.shape).flatten(1, 2)
                hidden = self.model(fuse(self.model, ids, features, places))
                rows_here = torch.arange(len(ids), device=ids.device)
                picked = hidden[rows_here, lengths + self.branch - 1]
                logits = self.model.logits(picked).float()
            found.append(logits[:, self.answers.ids[:, self.branch]].log_softmax(-1).cpu().numpy())
        return np.concatenate(found)

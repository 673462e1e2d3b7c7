# SPDX-License-Identifier: Apache-2.0
"""Fixed-shape micro-batches: frames to encode, decisions that show them, views asked about."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from nvila_ros.training.mirror import MIRRORED_ACTIONS, WordSwap, mirror_patches, mirror_targets
from nvila_ros.training.recipe import NanoRecipe
from nvila_ros.training.replay import EpisodeRecord, Replay, ViewRecord
from nvila_ros.training.sequences import SequenceBuilder

LIGHT_STRENGTH = 0.15  # of the random brightness, contrast and colour balance per frame


@dataclass
class Batch:
    """One micro-batch; rows beyond what was found have weight 0. Arrays first, then tensors."""

    slots: Tensor  # (F + V,) int64 ring slots: frames of decisions, then labelled views
    mirrored: Tensor  # (F + V,) bool frames that are turned round
    light: Tensor  # (F + V, 4) float32 factor per colour and a shift
    shown: Tensor  # (B, 8) int64 rows of `slots`
    ids: Tensor  # (B, L) int64 expanded prompt ids, the answer's places padded
    lengths: Tensor  # (B,) int64 length of each prompt
    target: Tensor  # (B, 10) float32 distribution over the actions
    taught: Tensor  # (B,) int64 the action whose sentence is shown
    # (B, 6) float32: sin, cos of the aim's bearing, log1p of the distance; then 1 where what comes
    # next is in view, sin, cos of its bearing, or zeros (`DecisionLabels.targets`).
    geometry: Tensor
    clause: Tensor  # (B,) int64
    weight: Tensor  # (B,) float32
    view_ids: Tensor  # (V, M) int64 expanded ids of the conversations
    view_places: Tensor  # (V, K) int64 positions whose next id is supervised
    view_weight: Tensor  # (V, K) float32
    patch_category: Tensor  # (V, P) int64
    patch_colour: Tensor  # (V, P) int64

    def copy_from(self, arrays: dict[str, Tensor]) -> None:
        """Overwrites every tensor in place, asynchronously from pinned memory."""
        for field in fields(self):
            getattr(self, field.name).copy_(arrays[field.name], non_blocking=True)


class BatchMaker:
    """Samples the replay into batches of constant shapes, so that the step compiles once."""

    def __init__(
        self,
        replay: Replay,
        sequences: SequenceBuilder,
        recipe: NanoRecipe,
        device: torch.device,
        num_patches: int,
    ) -> None:
        self.replay, self.sequences, self.recipe, self.device = replay, sequences, recipe, device
        self.num_patches = num_patches
        self.apartments: set[int] = set()  # seeds of what the last batch was made from
        self.swap = WordSwap(sequences.tokenizer, sequences.config.language.vocab_size)
        bare = sequences.navigation_prompt("x")
        # Only instructions are mirrored; the fixed phrases hold both sides anyway.
        assert np.array_equal(self.swap(bare), bare)

    def empty(self) -> Batch:
        """A batch on the device in which nothing counts."""
        nothing = self._decisions(np.random.default_rng(0), [])
        views = self._views(np.random.default_rng(0), [])
        for name in ("slots", "mirrored"):
            views[name] = np.concatenate([nothing.pop(name), views[name]])
        views["light"] = np.zeros((len(views["slots"]), 4), np.float32)
        arrays = nothing | views
        return Batch(**{k: torch.from_numpy(v).to(self.device) for k, v in arrays.items()})

    def arrays(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """One micro-batch as tensors in (pinned, where there is a GPU) host memory."""
        recipe = self.recipe
        episodes = self.replay.sample_episodes(rng, recipe.num_decisions, recipe.num_frames)
        views = self.replay.sample_views(rng, recipe.num_views)
        self.apartments = {episode.apartment for episode in episodes}
        self.apartments |= {view.apartment for view in views}
        decisions = self._decisions(rng, episodes)
        seen = self._views(rng, views)
        joined = {
            name: np.concatenate([decisions.pop(name), seen.pop(name)])
            for name in ("slots", "mirrored")
        }
        joined["light"] = _random_light(rng, len(joined["slots"]))
        arrays = joined | decisions | seen
        pin = self.device.type == "cuda"
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return {name: t.pin_memory() if pin else t for name, t in tensors.items()}

    def _decisions(
        self, rng: np.random.Generator, episodes: list[EpisodeRecord]
    ) -> dict[str, np.ndarray]:
        recipe, sequences = self.recipe, self.sequences
        total, ring = recipe.num_decisions, self.replay.ring
        slots = np.zeros(recipe.num_frames, np.int64)
        mirrored = np.zeros(recipe.num_frames, bool)
        shown = np.zeros((total, sequences.config.num_video_frames), np.int64)
        ids = np.full((total, sequences.prompt_length), sequences.pad_id, np.int64)
        lengths = np.full(total, sequences.min_length, np.int64)
        costs, geometry = np.zeros((total, 10), np.float32), np.zeros((total, 6), np.float32)
        clause, weight = np.zeros(total, np.int64), np.zeros(total, np.float32)
        row, frame = 0, 1  # frame 0 is the black one
        for episode in episodes:
            count, number = min(episode.num_decisions, total - row), len(episode.tickets)
            rows, frames = slice(row, row + count), slice(frame, frame + number)
            turned = rng.random() < recipe.mirror_share
            slots[frames], mirrored[frames] = ring.slots(episode.tickets), turned
            shown[rows] = np.where(episode.shown < 0, 0, episode.shown + frame)[:count]
            prompt = episode.prompt_ids.astype(np.int64)
            ids[rows] = self.swap(prompt) if turned else prompt
            lengths[rows], clause[rows] = episode.prompt_length, episode.clause[:count]
            costs[rows] = (episode.costs[:, MIRRORED_ACTIONS] if turned else episode.costs)[:count]
            targets = mirror_targets(episode.targets) if turned else episode.targets
            geometry[rows], weight[rows] = targets[:count], 1.0
            row, frame = row + count, frame + number
        weight[(costs.argmin(1) == 0) & (weight > 0)] = recipe.stop_weight
        target = soft_targets(costs, recipe.temperature)
        noise = rng.gumbel(size=target.shape)
        return {
            "slots": slots,
            "mirrored": mirrored,
            "shown": shown,
            "ids": ids,
            "lengths": lengths,
            "target": target,
            "taught": (np.log(target + 1e-12) + noise).argmax(1),
            "geometry": geometry,
            "clause": clause,
            "weight": weight / max(weight.sum(), 1.0),
        }

    def _views(self, rng: np.random.Generator, views: list[ViewRecord]) -> dict[str, np.ndarray]:
        total, sequences = self.recipe.num_views, self.sequences
        slots, mirrored = np.zeros(total, np.int64), np.zeros(total, bool)
        mirrored[: len(views)] = rng.random(len(views)) < self.recipe.mirror_share
        ids = np.full((total, sequences.view_length), sequences.pad_id, np.int64)
        places = np.zeros((total, sequences.view_places), np.int64)
        weight = np.zeros((total, sequences.view_places), np.float32)
        category = np.zeros((total, self.num_patches), np.int64)
        colour = np.zeros((total, self.num_patches), np.int64)
        for row, view in enumerate(views):
            slots[row] = view.ticket
            turned = mirrored[row]
            ids[row, : len(view.ids)] = self.swap(view.ids) if turned else view.ids
            asked = np.flatnonzero(view.supervised)[: sequences.view_places] - 1
            places[row, : len(asked)] = asked
            weight[row, : len(asked)] = 1.0
            labels = (view.patch_category, view.patch_colour)
            category[row], colour[row] = map(mirror_patches, labels) if turned else labels
        return {
            "slots": self.replay.ring.slots(slots),
            "mirrored": mirrored,
            "view_ids": ids,
            "view_places": places,
            "view_weight": weight / max(weight.sum(), 1.0),
            "patch_category": category,
            "patch_colour": colour,
        }


def soft_targets(costs: np.ndarray, temperature: float) -> np.ndarray:
    """(B, 10) costs-to-go -> (B, 10) float32 distribution that prefers the cheap ones."""
    scaled = np.exp(-(costs - costs.min(1, keepdims=True)) / temperature)
    return (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)


def _random_light(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) float32: factor per colour and a shift, per frame."""
    gain = 1.0 + LIGHT_STRENGTH * rng.uniform(-1, 1, (count, 1))
    balance = 1.0 + 0.4 * LIGHT_STRENGTH * rng.uniform(-1, 1, (count, 3))
    shift = LIGHT_STRENGTH * rng.uniform(-1, 1, (count, 1))
    return np.concatenate([gain * balance, shift], 1).astype(np.float32)

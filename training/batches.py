# SPDX-License-Identifier: Apache-2.0
"""Fixed-shape micro-batches: frames to encode, decisions that show them, views asked about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nvila_ros.training.recipe import NanoRecipe
from nvila_ros.training.replay import NUM_FRAMES, Replay
from nvila_ros.training.sequences import SequenceBuilder


@dataclass
class Batch:
    """Tensors of one micro-batch; rows beyond what was found have weight 0."""

    pixels: Tensor  # (F + V, S, S, 3) uint8: frames of decisions, then labelled views
    shown: Tensor  # (B, 8) int64 rows of `pixels`
    ids: Tensor  # (B, L) int64 expanded prompt ids, the answer's places padded
    lengths: Tensor  # (B,) int64 length of each prompt
    costs: Tensor  # (B, 10) float32
    targets: Tensor  # (B, 3) float32
    clause: Tensor  # (B,) int64
    weight: Tensor  # (B,) float32
    view_ids: Tensor  # (V, M) int64 expanded ids of the conversations
    view_places: Tensor  # (V, K) int64 positions whose next id is supervised
    view_weight: Tensor  # (V, K) float32
    patch_category: Tensor  # (V, P) int64
    patch_colour: Tensor  # (V, P) int64


class BatchMaker:
    """Samples the replay into batches of constant shapes, so that the step compiles once."""

    def __init__(
        self, replay: Replay, sequences: SequenceBuilder, recipe: NanoRecipe, device: torch.device
    ):
        self.replay, self.sequences, self.recipe, self.device = replay, sequences, recipe, device

    def make(self, rng: np.random.Generator) -> Batch:
        """One micro-batch on the device."""
        recipe, ring = self.recipe, self.replay.ring
        chosen, tickets = self.replay.sample_decisions(rng, recipe.num_decisions, recipe.num_frames)
        views = self.replay.sample_views(rng, recipe.num_views)
        slots = np.zeros(recipe.num_frames + recipe.num_views, np.int64)
        slots[: len(tickets)] = ring.slots(tickets)
        slots[recipe.num_frames : recipe.num_frames + len(views)] = [
            view.ticket % ring.capacity for view in views
        ]
        count = len(chosen)
        arrays = self._decisions(chosen, tickets, count) | self._views(views)
        tensors = {name: self._send(value) for name, value in arrays.items()}
        return Batch(pixels=ring.pixels[self._send(slots)], **tensors)

    def _decisions(self, chosen, tickets: np.ndarray, count: int) -> dict[str, np.ndarray]:
        total, length = self.recipe.num_decisions, self.sequences.prompt_length
        ids = np.full((total, length), self.sequences.pad_id, np.int64)
        lengths = np.full(total, self.sequences.min_length, np.int64)
        shown = np.zeros((total, NUM_FRAMES), np.int64)
        costs, targets = np.zeros((total, 10), np.float32), np.zeros((total, 3), np.float32)
        clause, weight = np.zeros(total, np.int64), np.zeros(total, np.float32)
        for row, (episode, k) in enumerate(chosen):
            ids[row, : len(episode.prompt_ids)] = episode.prompt_ids
            lengths[row] = len(episode.prompt_ids)
            shown[row] = episode.shown[k]
            costs[row] = episode.costs[k]
            targets[row] = episode.targets[k]
            clause[row] = episode.clause[k]
        shown = np.searchsorted(tickets, shown)
        weight[:count] = np.where(costs[:count].argmin(1) == 0, self.recipe.stop_weight, 1.0)
        return {
            "ids": ids,
            "lengths": lengths,
            "shown": shown,
            "costs": costs,
            "targets": targets,
            "clause": clause,
            "weight": weight / max(weight.sum(), 1.0),
        }

    def _views(self, views) -> dict[str, np.ndarray]:
        total, sequences = self.recipe.num_views, self.sequences
        ids = np.full((total, sequences.view_length), sequences.pad_id, np.int64)
        places = np.zeros((total, sequences.view_places), np.int64)
        weight = np.zeros((total, sequences.view_places), np.float32)
        num_patches = len(views[0].patch_category) if views else 1
        category = np.zeros((total, num_patches), np.int64)
        colour = np.zeros((total, num_patches), np.int64)
        for row, view in enumerate(views):
            ids[row, : len(view.ids)] = view.ids
            asked = np.flatnonzero(view.supervised)[: sequences.view_places] - 1
            places[row, : len(asked)] = asked
            weight[row, : len(asked)] = 1.0
            category[row], colour[row] = view.patch_category, view.patch_colour
        return {
            "view_ids": ids,
            "view_places": places,
            "view_weight": weight / max(weight.sum(), 1.0),
            "patch_category": category,
            "patch_colour": colour,
        }

    def _send(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

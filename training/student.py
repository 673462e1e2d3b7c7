# SPDX-License-Identifier: Apache-2.0
"""The model under training drives: it decides for many robots at once, each frame encoded once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.graphs import Captured
from nvila_ros.training.objectives import AnswerTable, fuse, normalise
from nvila_ros.training.replay import BLACK_SLOT, FrameRing
from nvila_ros.training.sequences import SequenceBuilder

DECIDE_ROWS = 128  # frames, or robots, at once: the shapes are constant


class Student:
    """Encodes each frame once, with the weights of that moment, and chooses among the answers.

    It samples an answer or takes the likeliest, among those that are offered. `captured` replays
    both halves as CUDA graphs; they read the weights as they are at that moment.
    """

    def __init__(
        self,
        model: Nvila,
        answers: AnswerTable,
        sequences: SequenceBuilder,
        ring: FrameRing,
        captured: bool = False,
        num_rows: int = DECIDE_ROWS,
    ) -> None:
        self.num_rows = num_rows
        self.model, self.answers, self.sequences, self.ring = model, answers, sequences, ring
        device = model.device
        self.device = device
        self.rng = np.random.default_rng(0)
        self.places = torch.tensor(sequences.navigation_image_places, device=device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.encoded = np.full(ring.capacity, -1, np.int64)  # ticket whose features a slot holds
        self.branch = branching_place(answers)
        self.shape = {
            "slots": torch.zeros(num_rows, dtype=torch.long, device=device),
            "shown": torch.zeros(
                (num_rows, sequences.config.num_video_frames), dtype=torch.long, device=device
            ),
            "ids": torch.full((num_rows, sequences.prompt_length), sequences.pad_id).to(device),
            "lengths": torch.full((num_rows,), sequences.min_length, device=device),
        }
        # Urgent: fleets wait for the answers, the trainer's step beside them takes far longer.
        self._encode_slots = Captured(self._encode_now, captured, priority=-1)
        self._score_rows = Captured(self._score_now, captured, priority=-1)

    def capture(self) -> None:
        """Records both graphs; call it while no other thread uses the device."""
        with torch.no_grad():
            self._encode_slots(self.shape["slots"])
            self._score_rows(self.shape["shown"], self.shape["ids"], self.shape["lengths"])

    @torch.no_grad()
    def decide(
        self,
        shown: np.ndarray,
        prompt_ids: np.ndarray,
        lengths: np.ndarray,
        greedy: np.ndarray,
        allowed: np.ndarray,
    ) -> np.ndarray:
        """(n, 8) tickets, (n, L) prompts of (n,) ids, (n,) and (n, 10) bool -> (n,) actions."""
        scores = np.empty(allowed.shape, np.float32)
        if not len(shown):
            return np.zeros(0, np.int64)
        self._encode(shown)
        slots = self.ring.slots(shown)
        for begin in range(0, len(shown), self.num_rows):
            rows = slice(begin, begin + self.num_rows)
            found = self._score_rows(
                self._padded("shown", slots[rows]),
                self._padded("ids", prompt_ids[rows]),
                self._padded("lengths", lengths[rows]),
            )
            scores[rows] = found.cpu().numpy()[: len(shown[rows])]
        scores = np.where(allowed, scores, -np.inf)
        noise = self.rng.gumbel(size=scores.shape) * ~greedy[:, None]
        return (scores + noise).argmax(1)

    def _encode(self, shown: np.ndarray) -> None:
        tickets = np.unique(np.append(shown, BLACK_SLOT))
        slots = self.ring.slots(tickets)
        fresh = (self.encoded[slots] != tickets) | (tickets == BLACK_SLOT)
        tickets, slots = tickets[fresh], slots[fresh]
        for begin in range(0, len(slots), self.num_rows):
            self._encode_slots(self._padded("slots", slots[begin : begin + self.num_rows]))
        self.encoded[slots] = tickets

    def _padded(self, name: str, rows: np.ndarray) -> Tensor:
        """Rows on the device; in a graph's constant shape, where what is beyond them is old."""
        given = torch.from_numpy(np.ascontiguousarray(rows, np.int64))
        if not self._encode_slots.enabled:
            return given.to(self.device)
        tensor = self.shape[name]
        tensor[: len(rows)].copy_(given)
        return tensor

    def _encode_now(self, slots: Tensor) -> Tensor:
        """Slots left over from an earlier call are encoded anew, which does no harm."""
        with self.autocast:
            features = self.model.encode_frames(normalise(self.ring.pixels[slots]))
        self.ring.features[slots] = features.to(self.ring.features.dtype)
        return slots

    def _score_now(self, shown: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """(n, 10) log probabilities of the answers, from the token at which they part."""
        with self.autocast:
            first = self.answers.ids[0]
            rows = torch.arange(len(ids), device=ids.device)
            for place in range(self.branch):  # the beginning that all answers share
                ids = ids.scatter(1, (lengths + place)[:, None], first[place].expand(len(ids), 1))
            features = self.ring.features[shown].flatten(1, 2)
            hidden = self.model(fuse(self.model, ids, features, self.places))
            logits = self.model.logits(hidden[rows, lengths + self.branch - 1]).float()
        return logits[:, self.answers.ids[:, self.branch]].log_softmax(-1)


def branching_place(answers: AnswerTable) -> int:
    """The one place at which the answers part; the vocabulary has a token per ending."""
    differs = [len(set(column)) for column in answers.ids.T.tolist()]
    places = [place for place, count in enumerate(differs) if count > 1]
    if len(places) != 1 or differs[places[0]] != len(answers.ids):
        raise ValueError("the answers must part at exactly one token; use the small tokenizer")
    return places[0]

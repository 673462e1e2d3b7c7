# SPDX-License-Identifier: Apache-2.0
"""The model under training drives: it decides for many robots at once, each frame encoded once."""

from __future__ import annotations

import numpy as np
import torch

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.objectives import AnswerTable, fuse, normalise
from nvila_ros.training.replay import EpisodeRecord, FrameRing
from nvila_ros.training.sequences import SequenceBuilder

ENCODE_CHUNK = 512


class Student:
    """Encodes each frame once, with the weights of that moment, and walks the answers' tokens."""

    def __init__(
        self, model: Nvila, answers: AnswerTable, sequences: SequenceBuilder, ring: FrameRing
    ):
        self.model, self.answers, self.sequences, self.ring = model, answers, sequences, ring
        device = model.device
        self.places = torch.tensor(sequences.navigation_image_places, device=device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.encoded: dict[
            int, int
        ] = {}  # ring slot -> ticket of the frame whose features it holds

    @torch.no_grad()
    def decide(self, records: list[EpisodeRecord], greedy: np.ndarray) -> np.ndarray:
        """(n,) actions for the records' newest decisions; sampled where `greedy` is False."""
        if not records:
            return np.zeros(0, np.int64)
        with self.autocast:
            shown = np.stack([record.shown[-1] for record in records])
            self._encode(shown)
            device = self.model.device
            slots = torch.from_numpy(self.ring.slots(shown)).to(device)
            features = self.ring.features[slots].flatten(1, 2)
            ids = torch.full((len(records), self.sequences.prompt_length), self.sequences.pad_id)
            lengths = torch.tensor([len(record.prompt_ids) for record in records], device=device)
            for row, record in enumerate(records):
                ids[row, : len(record.prompt_ids)] = torch.from_numpy(record.prompt_ids)
            chosen = self._walk(
                ids.to(device), features, lengths, torch.from_numpy(greedy).to(device)
            )
        return chosen.cpu().numpy()

    def _encode(self, shown: np.ndarray) -> None:
        tickets = np.unique(shown)
        fresh = [
            t for t in tickets.tolist() if self.encoded.get(t % self.ring.capacity) != t or t == 0
        ]
        for begin in range(0, len(fresh), ENCODE_CHUNK):
            part = fresh[begin : begin + ENCODE_CHUNK]
            slots = torch.tensor([t % self.ring.capacity for t in part], device=self.model.device)
            features = self.model.encode_frames(normalise(self.ring.pixels[slots]))
            self.ring.features[slots] = features.to(self.ring.features.dtype)
            self.encoded.update({t % self.ring.capacity: t for t in part})

    def _walk(self, ids, features, lengths, greedy) -> torch.Tensor:
        """Down the answers' tokens: at each place, choose among the answers that still agree."""
        answers = self.answers
        count = len(ids)
        rows = torch.arange(count, device=ids.device)
        alive = torch.ones((count, len(answers.ids)), dtype=torch.bool, device=ids.device)
        for place in range(answers.length):
            tokens = answers.ids[:, place]
            if self._may_differ(alive, tokens):
                hidden = self.model(fuse(self.model, ids, features, self.places))
                logits = self.model.logits(hidden[rows, lengths + place - 1]).float()
                scores = logits[:, tokens].masked_fill(~alive, -1e9)  # (B, 10)
                noise = -torch.log(-torch.log(torch.rand_like(scores).clamp(1e-9, 1 - 1e-9)))
                distinct = self._first_of_each(alive, tokens)
                scores = scores.masked_fill(~distinct, -1e9)
                picked = (scores + noise * (~greedy[:, None])).argmax(-1)
            else:
                picked = alive.float().argmax(-1)
            token = tokens[picked]
            alive &= tokens[None, :] == token[:, None]
            ids[rows, lengths + place] = token
        return alive.float().argmax(-1)

    @staticmethod
    def _may_differ(alive, tokens) -> bool:
        low = torch.where(alive, tokens[None, :], tokens.max()).amin(-1)
        high = torch.where(alive, tokens[None, :], tokens.min()).amax(-1)
        return bool((low != high).any())

    @staticmethod
    def _first_of_each(alive, tokens) -> torch.Tensor:
        """(B, 10) marks, per row, the first living answer of each distinct token."""
        same = tokens[:, None] == tokens[None, :]  # (10, 10)
        earlier = torch.tril(same.float(), -1) @ alive.float().T  # (10, B)
        return alive & (earlier.T == 0)

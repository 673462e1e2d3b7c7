# SPDX-License-Identifier: Apache-2.0
"""Frames on the device and the decisions that show them: a ring that forgets the oldest.

Frames are stored once; a decision holds the tickets of its eight frames, so all decisions of an
episode share what the tower computes. One thread writes, another samples: what the ring will
overwrite soon is not sampled any more.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

BLACK_SLOT = 0


def history_indices(num_frames: int, num_shown: int = 8) -> np.ndarray:
    """(num_shown,) frame indices a decision shows after `num_frames` frames; -1 is a black frame.

    NaVILA's rule: black frames in front until there are enough, then all but one uniform over
    everything before the current one, the first always kept, and the current one last (NaVILA,
    `sample_and_pad_images`).
    """
    padding = max(0, num_shown - num_frames)
    indices = np.concatenate([np.full(padding, -1), np.arange(num_frames)])
    chosen = np.linspace(0, len(indices) - 1, num=num_shown - 1, endpoint=False, dtype=int)
    return np.append(indices[chosen], indices[-1])


class FrameRing:
    """A fixed number of frames in device memory, addressed by ever-growing tickets."""

    def __init__(
        self, capacity: int, size_px: int, device: torch.device, feature_shape: tuple[int, int]
    ) -> None:
        self.capacity = capacity
        self.margin = min(8192, capacity // 4)  # frames that may be overwritten while they are used
        self.pixels = torch.zeros((capacity, size_px, size_px, 3), dtype=torch.uint8, device=device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.features = torch.zeros((capacity, *feature_shape), dtype=dtype, device=device)
        self.next_ticket = 1  # slot 0 of every lap is the black frame

    def put(self, frames: torch.Tensor) -> np.ndarray:
        """Copies (n, S, S, 3) uint8 in, to consecutive slots; returns their tickets (n,) int64.

        Frames in pinned memory are copied asynchronously in the current stream.
        """
        first = self.next_ticket
        slot = first % self.capacity
        if slot + len(frames) > self.capacity:  # what is left of this lap stays unused
            first += self.capacity - slot + 1
            slot = 1
        self.pixels[slot : slot + len(frames)].copy_(frames, non_blocking=True)
        self.next_ticket = first + len(frames)
        if self.next_ticket % self.capacity == BLACK_SLOT:
            self.next_ticket += 1
        return np.arange(first, first + len(frames))

    def is_held(self, ticket: int) -> bool:
        """Whether the frame is still there; a margin covers writes to come."""
        return ticket > self.next_ticket - self.capacity + self.margin

    def slots(self, tickets: np.ndarray) -> np.ndarray:
        """Ring slots of tickets; ticket 0 is the black frame."""
        return tickets % self.capacity


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """One robot's episode as the trainer sees it: K decisions."""

    prompt_ids: np.ndarray  # (L,) int16 expanded ids of the whole prompt, padded
    prompt_length: int  # of them before the answer begins
    tickets: np.ndarray  # (D,) sorted distinct tickets of all frames shown, without the black one
    shown: np.ndarray  # (K, frames shown) rows of `tickets`, -1 for the black frame
    costs: np.ndarray  # (K, 10) float32
    targets: np.ndarray  # (K, 6) float32, as a fleet labels them
    clause: np.ndarray  # (K,) int64
    apartment: int = -1  # its seed

    @classmethod
    def from_shown(
        cls,
        prompt_ids: np.ndarray,
        prompt_length: int,
        shown_tickets: np.ndarray,
        costs: np.ndarray,
        targets: np.ndarray,
        clause: np.ndarray,
        apartment: int = -1,
    ) -> EpisodeRecord:
        """`shown_tickets` is (K, frames shown), 0 for the black frame."""
        tickets, rows = np.unique(shown_tickets, return_inverse=True)
        rows = rows.reshape(shown_tickets.shape)
        if tickets[0] == BLACK_SLOT:
            tickets, rows = tickets[1:], rows - 1
        return cls(prompt_ids, prompt_length, tickets, rows, costs, targets, clause, apartment)

    @property
    def num_decisions(self) -> int:
        """How often it was decided."""
        return len(self.shown)


@dataclass(frozen=True, eq=False)
class ViewRecord:
    """One labelled view: its frame, its patch labels and a conversation about it."""

    ticket: int
    patch_category: np.ndarray  # (P,) uint8
    patch_colour: np.ndarray  # (P,) uint8
    ids: np.ndarray  # expanded ids of the conversation
    supervised: np.ndarray  # (len,) bool: ids that the model must predict
    apartment: int = -1  # its seed


class Replay:
    """Finished episodes and views whose frames the ring still holds."""

    def __init__(self, ring: FrameRing) -> None:
        self.ring = ring
        self.episodes: deque[EpisodeRecord] = deque()
        self.views: deque[ViewRecord] = deque()
        self.num_decisions = 0
        self._lock = threading.Lock()

    def add(self, episodes: list[EpisodeRecord], views: list[ViewRecord]) -> None:
        """Keeps episodes that are over and labelled views."""
        kept = [episode for episode in episodes if episode.num_decisions]
        with self._lock:
            self.episodes.extend(kept)
            self.views.extend(views)
            self.num_decisions += sum(episode.num_decisions for episode in kept)

    def forget(self) -> None:
        """Drops what the ring has overwritten."""
        with self._lock:
            while self.episodes and not self.ring.is_held(self.episodes[0].tickets[0]):
                self.num_decisions -= self.episodes.popleft().num_decisions
            while self.views and not self.ring.is_held(self.views[0].ticket):
                self.views.popleft()

    def sample_episodes(
        self, rng: np.random.Generator, num_decisions: int, num_frames: int
    ) -> list[EpisodeRecord]:
        """Different random episodes that fill a batch of decisions and distinct frames.

        The last one may hold more decisions than are wanted; frames are never exceeded, the black
        one included.
        """
        with self._lock:
            order = rng.permutation(len(self.episodes))[: 4 * num_decisions]
            candidates = [self.episodes[index] for index in order[:512]]
        chosen: list[EpisodeRecord] = []
        decisions, frames = 0, 1
        for episode in candidates:
            if decisions >= num_decisions:
                break
            if not self.ring.is_held(episode.tickets[0]):
                continue
            if frames + len(episode.tickets) > num_frames:
                if frames > 0.9 * num_frames:
                    break
                continue
            chosen.append(episode)
            decisions += episode.num_decisions
            frames += len(episode.tickets)
        return chosen

    def sample_views(self, rng: np.random.Generator, count: int) -> list[ViewRecord]:
        """Random labelled views that the ring still holds."""
        with self._lock:
            held = [self.views[i] for i in rng.integers(len(self.views), size=2 * count)]
        return [view for view in held if self.ring.is_held(view.ticket)][:count]

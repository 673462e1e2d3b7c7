# SPDX-License-Identifier: Apache-2.0
"""Frames on the device and the decisions that show them: a ring that forgets the oldest.

Frames are stored once; a decision holds the ring slots of its eight frames, so all decisions of an
episode share what the tower computes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

NUM_FRAMES = 8
BLACK_SLOT = 0


def history_indices(num_frames: int) -> np.ndarray:
    """(8,) frame indices a decision shows after `num_frames` frames; -1 is a black frame.

    NaVILA's rule: black frames in front until there are eight, then seven uniform over everything
    before the current one, the first always kept, and the current one last (NaVILA,
    `sample_and_pad_images`).
    """
    padding = max(0, NUM_FRAMES - num_frames)
    indices = np.concatenate([np.full(padding, -1), np.arange(num_frames)])
    chosen = np.linspace(0, len(indices) - 1, num=NUM_FRAMES - 1, endpoint=False, dtype=int)
    return np.append(indices[chosen], indices[-1])


class FrameRing:
    """A fixed number of frames in device memory, addressed by ever-growing tickets."""

    def __init__(
        self, capacity: int, size_px: int, device: torch.device, feature_shape: tuple[int, int]
    ):
        self.capacity = capacity
        self.pixels = torch.zeros((capacity, size_px, size_px, 3), dtype=torch.uint8, device=device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.features = torch.zeros((capacity, *feature_shape), dtype=dtype, device=device)
        self.next_ticket = 1  # slot 0 of every lap is the black frame

    def put(self, frames: np.ndarray) -> np.ndarray:
        """Copies (n, S, S, 3) uint8 in; returns their tickets (n,) int64."""
        tickets = np.empty(len(frames), np.int64)
        for row in range(len(frames)):
            if self.next_ticket % self.capacity == BLACK_SLOT:
                self.next_ticket += 1
            tickets[row] = self.next_ticket
            self.next_ticket += 1
        slots = torch.from_numpy(tickets % self.capacity).to(self.pixels.device)
        self.pixels[slots] = torch.from_numpy(np.ascontiguousarray(frames)).to(self.pixels.device)
        return tickets

    def is_held(self, ticket: int) -> bool:
        """Whether the frame is still there; a margin covers writes to come."""
        return ticket > self.next_ticket - self.capacity + 4096

    def slots(self, tickets: np.ndarray) -> np.ndarray:
        """Ring slots of tickets; ticket 0 is the black frame."""
        return tickets % self.capacity


@dataclass
class EpisodeRecord:
    """One robot's episode as the trainer sees it."""

    prompt_ids: np.ndarray  # expanded ids of the whole prompt, answer excluded
    tickets: list[int] = field(default_factory=list)  # one per frame
    shown: list[np.ndarray] = field(default_factory=list)  # (8,) tickets per decision
    costs: list[np.ndarray] = field(default_factory=list)  # (10,) per decision
    targets: list[np.ndarray] = field(default_factory=list)  # (3,) per decision
    clause: list[int] = field(default_factory=list)

    def show(self) -> np.ndarray:
        """(8,) tickets of the frames that a decision taken now shows."""
        indices = history_indices(len(self.tickets))
        tickets = np.array(self.tickets)
        return np.where(indices < 0, BLACK_SLOT, tickets[np.maximum(indices, 0)])


@dataclass
class ViewRecord:
    """One labelled view: its frame, its patch labels and a conversation about it."""

    ticket: int
    patch_category: np.ndarray  # (P,) uint8
    patch_colour: np.ndarray  # (P,) uint8
    ids: np.ndarray  # expanded ids of the conversation
    supervised: np.ndarray  # (len,) bool: ids that the model must predict


class Replay:
    """Finished and running episodes and views whose frames the ring still holds."""

    def __init__(self, ring: FrameRing):
        self.ring = ring
        self.episodes: deque[EpisodeRecord] = deque()
        self.views: deque[ViewRecord] = deque()
        self.num_decisions = 0

    def add_episode(self, record: EpisodeRecord) -> None:
        """Keeps an episode that is over."""
        if record.shown:
            self.episodes.append(record)
            self.num_decisions += len(record.shown)

    def forget(self) -> None:
        """Drops what the ring has overwritten."""
        while self.episodes and not self.ring.is_held(self.episodes[0].tickets[0]):
            self.num_decisions -= len(self.episodes.popleft().shown)
        while self.views and not self.ring.is_held(self.views[0].ticket):
            self.views.popleft()

    def sample_decisions(
        self, rng: np.random.Generator, num_decisions: int, num_frames: int
    ) -> tuple[list[tuple[EpisodeRecord, int]], np.ndarray]:
        """Decisions of random whole episodes that show at most `num_frames` different frames.

        Returns (episode, decision index) pairs and the sorted distinct tickets (ticket 0 first).
        """
        chosen: list[tuple[EpisodeRecord, int]] = []
        tickets: set[int] = {BLACK_SLOT}
        for _ in range(10_000):
            if len(chosen) >= num_decisions:
                break
            episode = self.episodes[rng.integers(len(self.episodes))]
            if not self.ring.is_held(episode.tickets[0]):
                continue
            new = set(np.concatenate(episode.shown).tolist()) - tickets
            if len(tickets) + len(new) > num_frames:
                break
            tickets |= new
            chosen += [(episode, k) for k in range(len(episode.shown))]
        return chosen[:num_decisions], np.array(sorted(tickets))

    def sample_views(self, rng: np.random.Generator, count: int) -> list[ViewRecord]:
        """Random labelled views that the ring still holds."""
        picks = rng.integers(len(self.views), size=2 * count)
        held = (self.views[i] for i in picks)
        return [view for view in held if self.ring.is_held(view.ticket)][:count]

# SPDX-License-Identifier: Apache-2.0
"""One corpus for all arms: fleets' drives, with every frame's ticket, as tensors on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nvila_ros.models.vision import VisionTower
from nvila_ros.training.collector import Collector, Round
from nvila_ros.training.fleet_pool import Finished
from nvila_ros.training.mirror import MIRRORED_ACTIONS, WordSwap, mirror_targets
from nvila_ros.training.objectives import normalise
from nvila_ros.training.replay import BLACK_SLOT, EpisodeRecord, FrameRing, history_indices
from nvila_ros.training.sequences import SequenceBuilder

ENCODE_FRAMES = 256  # at once


@dataclass(frozen=True, eq=False)
class Drive:
    """One robot's episode with the tickets of all its frames, whatever a decision shows of them."""

    record: EpisodeRecord
    tickets: np.ndarray  # (F,) int64, of the frames in order
    last_frame: np.ndarray  # (K,) int64 current frame of each decision
    driver: int  # fleet_settings.ORACLE, STUDENT or EXAM, of its frames
    is_twin: bool = False  # told another instruction than the one that was driven


class DriveCollector(Collector):
    """A collector that also keeps each episode as a `Drive`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.drives: list[Drive] = []

    def _keep(self, under_way: Round, message: Finished, records: dict[int, EpisodeRecord]) -> None:
        rows = np.concatenate([step["rows"] for step in under_way.steps])
        last = np.concatenate([step["last_frame"] for step in under_way.steps])
        for row, record in records.items():
            robot, frames = int(under_way.started.robot_of[row]), last[rows == row]
            tickets = under_way.tickets[robot, : frames.max() + 1]
            driver, is_twin = int(message.driver[robot]), row >= len(message.driver)
            self.drives.append(Drive(record, tickets, frames, driver, is_twin))


class PromptTable:
    """Navigation prompts of another number of frames, made from prompts of the fleets' number."""

    def __init__(self, made: SequenceBuilder, wanted: SequenceBuilder) -> None:
        self._wanted, self._same = wanted, made.prompt_length == wanted.prompt_length
        self._made_ends, self._ends = _ends(made), _ends(wanted)

    def __call__(self, ids: np.ndarray, length: int) -> tuple[np.ndarray, int]:
        """Padded ids (L,) of `length` -> padded ids of the wanted prompt, and its length."""
        first, last = (len(end) for end in self._made_ends)
        words = ids[first : length - last]
        prompt = np.concatenate([self._ends[0], words, self._ends[1]])
        padded = np.full(self._wanted.prompt_length, self._wanted.pad_id, np.int64)
        padded[: len(prompt)] = prompt
        return padded, len(prompt)


def _ends(sequences: SequenceBuilder) -> tuple[np.ndarray, np.ndarray]:
    """What stands before and after the instruction in every prompt."""
    one, other = (sequences.navigation_prompt(word) for word in ("left", "right right"))
    shorter = min(len(one), len(other))
    first = int(np.argmax(one[:shorter] != other[:shorter]))
    backwards = one[::-1][:shorter] != other[::-1][:shorter]
    return one[:first], one[len(one) - int(np.argmax(backwards)) :]


@dataclass(eq=False)
class Decisions:
    """Decisions of some drives for one shape of network; tensors on the device, N decisions."""

    shown: Tensor  # (N, T) int64 ring slots, 0 for the black frame
    prompt: Tensor  # (N,) int64 row of `ids`
    ids: Tensor  # (2, E, L) int64 prompts of E drives, as driven and mirrored
    lengths: Tensor  # (E,) int64
    costs: Tensor  # (2, N, 10) float32
    targets: Tensor  # (2, N, 6) float32
    clause: Tensor  # (N,) int64
    apartments: np.ndarray = field(repr=False)  # (N,) int64

    def __len__(self) -> int:
        return len(self.shown)

    def weights(self, stop_weight: float) -> Tensor:
        """(N,) float32: decisions where the oracle stops count so often."""
        return torch.where(self.costs[0].argmin(1) == 0, stop_weight, 1.0)

    def target(self, temperature: float) -> Tensor:
        """(2, N, 10) float32 soft targets, as driven and mirrored."""
        return torch.softmax(-self.costs / temperature, -1)


def build_decisions(
    drives: list[Drive], made: SequenceBuilder, wanted: SequenceBuilder, ring: FrameRing
) -> Decisions:
    """All decisions of `drives`, whose prompts were made by `made`, as `wanted` shows them."""
    number = wanted.config.num_video_frames
    prompts = PromptTable(made, wanted)
    swap = WordSwap(wanted.tokenizer, wanted.config.language.vocab_size)
    most = max(len(drive.tickets) for drive in drives)
    table = np.array([history_indices(n, number) for n in range(1, most + 1)])  # (F, T)
    shown, rows, ids, lengths = [], [], [], []
    for row, drive in enumerate(drives):
        frames = table[drive.last_frame]
        slots = ring.slots(drive.tickets)[np.maximum(frames, 0)]
        shown.append(np.where(frames < 0, BLACK_SLOT, slots))
        rows.append(np.full(len(frames), row))
        prompt, length = prompts(drive.record.prompt_ids, drive.record.prompt_length)
        ids.append(prompt)
        lengths.append(length)
    records = [drive.record for drive in drives]
    costs = np.concatenate([record.costs for record in records]).astype(np.float32)
    targets = np.concatenate([record.targets for record in records]).astype(np.float32)
    prompt_ids = np.stack(ids)
    device = ring.pixels.device

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Decisions(
        shown=put(np.concatenate(shown)),
        prompt=put(np.concatenate(rows)),
        ids=put(np.stack([prompt_ids, swap(prompt_ids)])),
        lengths=put(np.array(lengths)),
        costs=put(np.stack([costs, costs[:, MIRRORED_ACTIONS]])),
        targets=put(np.stack([targets, mirror_targets(targets).astype(np.float32)])),
        clause=put(np.concatenate([record.clause for record in records])),
        apartments=np.concatenate([np.full(len(r.costs), r.apartment) for r in records]),
    )


class PatchCache:
    """What a frozen tower says of every frame and of its mirror image, as bytes.

    One scale per patch: the projector begins with a norm over the patches that it folds together,
    so what is lost is the rounding, at most 1/254 of the patch's largest channel.
    """

    def __init__(self, ring: FrameRing, num_patches: int, width: int) -> None:
        device, shape = ring.pixels.device, (2, ring.capacity, num_patches)
        self.ring = ring
        self.codes = torch.zeros((*shape, width), dtype=torch.int8, device=device)
        self.scales = torch.zeros((*shape, 1), dtype=torch.bfloat16, device=device)

    @torch.no_grad()
    def encode(self, tower: VisionTower, slots: np.ndarray, autocast: torch.autocast) -> None:
        """Fills the rows of (n,) ring slots."""
        device = self.codes.device
        for begin in range(0, len(slots), ENCODE_FRAMES):
            rows = torch.from_numpy(np.ascontiguousarray(slots[begin : begin + ENCODE_FRAMES]))
            rows = rows.to(device)
            pixels = self.ring.pixels[rows]
            for side, seen in enumerate((pixels, pixels.flip(2))):
                with autocast:
                    patches = tower(normalise(seen)).float()
                scale = (patches.abs().amax(-1, keepdim=True) / 127.0 + 1e-8).bfloat16()
                self.codes[side, rows] = (patches / scale.float()).round().clamp(-127, 127).char()
                self.scales[side, rows] = scale

    def codes_of(self, slots: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) slots, (n,) 0 or 1 -> (n, P, C) int8 codes and (n, P, 1) scales."""
        return self.codes[turned, slots], self.scales[turned, slots]


def shuffled_rows(rng: np.random.Generator, rows: np.ndarray, total: int) -> np.ndarray:
    """`total` of `rows`, all of them once before any comes again."""
    times = -(-total // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(times)])[:total]

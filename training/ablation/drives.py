# SPDX-License-Identifier: Apache-2.0
"""Fleets fill one ring of frames for all arms: the oracle's drives, later a trained arm's own."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from nvila_ros.errors import TrainingError
from nvila_ros.models.vision import VisionTower
from nvila_ros.training.ablation.arms import AblationRecipe
from nvila_ros.training.ablation.corpus import Drive, DriveCollector, PatchCache
from nvila_ros.training.ablation.runners import Runner
from nvila_ros.training.fleet_pool import FleetPool
from nvila_ros.training.fleet_settings import ORACLE, STUDENT, FleetSettings
from nvila_ros.training.replay import FrameRing, Replay, ViewRecord
from nvila_ros.training.sequences import SequenceBuilder
from nvila_ros.training.student import Student

FIRST_SEED = 400_000
NEWER_SHARE = 0.65  # of the robots that a trained arm drives


class SharedDrives:
    """The ring, the drives in it, and what the released tower says of their frames."""

    def __init__(
        self,
        recipe: AblationRecipe,
        sequences: SequenceBuilder,
        tower: VisionTower,
        device: torch.device,
    ) -> None:
        self.recipe, self.sequences, self.tower, self.device = recipe, sequences, tower, device
        config = sequences.config
        shape = (config.tokens_per_frame, config.language.hidden_size)
        self.ring = FrameRing(recipe.ring_frames, config.vision.image_size, device, shape)
        self.spare = min(2048, recipe.ring_frames // 8)  # frames: the ring must not come round
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.replay = Replay(self.ring)
        self.training = Replay(self.ring)  # without what is held out
        self.rounds: dict = {}
        self.settings = FleetSettings(
            num_robots=recipe.num_robots,
            num_rounds=recipe.num_rounds,
            num_twins=recipe.num_twins,
        )
        self.student_share = 0.0
        self.drives: list[Drive] = []  # twins too; none of them is held out or newer
        self.held_out: list[Drive] = []
        self.newer: list[Drive] = []
        self.views: list[ViewRecord] = []
        self.cache: PatchCache
        self.is_closed = False
        self.pool = FleetPool(recipe.num_workers, self.settings, FIRST_SEED + recipe.seed)

    def _now(self) -> FleetSettings:
        return replace(self.settings, student_share=self.student_share)

    def _fill(self, student: Student | None, lasts_s: float, tickets: int) -> DriveCollector:
        """Collects for a while, or until the ring's next ticket is `tickets`."""
        collector = DriveCollector(self.pool, self.replay, student, self._now)
        collector.rounds = self.rounds  # those under way go on when fleets are heard again
        begin_s = time.monotonic()
        collector.start()
        while time.monotonic() - begin_s < lasts_s and self.ring.next_ticket < tickets:
            collector.check()
            time.sleep(0.05)
        collector.stop()
        collector.check()
        self.rounds = collector.rounds
        return collector

    def collect(self) -> dict[str, float]:
        """The corpus, after the oracle with random actions in between; returns its counts."""
        recipe = self.recipe
        most = recipe.ring_frames - recipe.drives_frames - self.spare
        collector = self._fill(None, recipe.corpus_s, most)

        def is_held_out(apartment: int) -> bool:
            return apartment % recipe.held_out == 0

        driven = [drive for drive in collector.drives if not drive.is_twin]
        self.held_out = [d for d in driven if is_held_out(d.record.apartment)]
        self.drives = [d for d in collector.drives if not is_held_out(d.record.apartment)]
        if not self.held_out and self.drives:  # of a toy
            self.held_out = [next(drive for drive in self.drives if not drive.is_twin)]
            self.drives.remove(self.held_out[0])
        self.views = [v for v in self.replay.views if not is_held_out(v.apartment)]
        if not self.drives or not self.views:
            raise TrainingError(
                f"after {recipe.corpus_s:g} s there are {len(collector.drives)} drives, "
                f"{len(self.drives)} of them to learn from with {len(self.views)} views; expected "
                "some of each. Raise corpus_s"
            )
        own = [drive.record for drive in self.drives if not drive.is_twin]
        self.training.add(own, self.views)
        vision = self.sequences.config.vision
        self.cache = PatchCache(self.ring, vision.grid_side**2, vision.hidden_size)
        self.encode(self.drives + self.held_out, self.tower)
        return {
            "frames": collector.num_frames,
            "decisions": collector.num_decisions,
            "episodes": len(own),
            "twins": len(self.drives) - len(own),
            "apartments": len({drive.record.apartment for drive in self.drives}),
            "held_out": len(self.held_out),
            "views": len(self.views),
            "oracle_success": float(np.mean(collector.results[ORACLE] or [0])),
        }

    def encode(self, drives: list[Drive], tower: VisionTower) -> None:
        """What `tower` says of the drives' frames, and of the black one."""
        tickets = np.concatenate([drive.tickets for drive in drives] + [np.zeros(1, np.int64)])
        self.cache.encode(tower, self.ring.slots(np.unique(tickets)), self.autocast)

    def collect_newer(self, runner: Runner) -> dict[str, float]:
        """The runner's network drives most robots for a while, the oracle the others."""
        captured = self.device.type == "cuda"
        student = Student(runner.model, runner.answers, self.sequences, self.ring, captured)
        if captured:
            student.capture()
            torch.cuda.synchronize()  # the collector's thread has a stream of its own
        self.student_share = NEWER_SHARE
        most = self.recipe.ring_frames - self.spare
        # Rounds that began before have the oracle at the wheel: they count as its newer drives.
        collector = self._fill(student, self.recipe.drives_s, most)
        held_out = self.recipe.held_out
        driven = [drive for drive in collector.drives if not drive.is_twin]
        self.newer = [d for d in driven if d.record.apartment % held_out]
        self.close()  # memory and cores are worth having
        self.encode(self.newer, self.tower)
        return {
            "newer_frames": collector.num_frames,
            "own": sum(drive.driver == STUDENT for drive in self.newer),
            "oracle": sum(drive.driver == ORACLE for drive in self.newer),
            "student_success": float(np.mean(collector.results[STUDENT] or [0])),
        }

    def newer_of(self, kind: str) -> list[Drive]:
        """As many newer episodes of either kind: 'own', or of the 'oracle'."""
        drivers = {"own": STUDENT, "oracle": ORACLE}
        parts = {k: [d for d in self.newer if d.driver == v] for k, v in drivers.items()}
        count = min(len(part) for part in parts.values())
        if not count:
            raise TrainingError(
                f"newer drives are {len(parts['own'])} of the model's own and "
                f"{len(parts['oracle'])} of the oracle, expected some of each; raise drives_s"
            )
        return parts[kind][:count]

    def close(self) -> None:
        """Ends the fleets' processes, once."""
        if not self.is_closed:
            self.is_closed = True
            self.pool.close()

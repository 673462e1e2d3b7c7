# SPDX-License-Identifier: Apache-2.0
"""Closed-loop exams of arms as they are done: `... .ablation.exams --run RUN --seeds A:B`.

The episodes, pictures and restraint are those of `nvila simulate`; all arms of a wave drive the
same apartment side by side, and the device decides for all processes at once. An episode ends at
STOP, or as failed after `--decisions`. One JSON line per arm and seed in RUN/exams.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch

from nvila_ros.models import weights
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.ablation.examinee import MOST_UNITS, Asked, work
from nvila_ros.training.ablation.files import load_arm
from nvila_ros.training.ablation.results import EXAMS_FILE, LOG_FILE
from nvila_ros.training.frame_workers import FrameWorkers
from nvila_ros.training.objectives import AnswerTable
from nvila_ros.training.replay import BLACK_SLOT, FrameRing, history_indices
from nvila_ros.training.student import Student
from nvila_ros.training.vocabulary import NetworkShape, build_sequences

MAX_ARMS = 6  # in a wave


class Examiner:
    """Decides for one arm's robots in all processes."""

    def __init__(
        self, model: Nvila, shape: NetworkShape, num_workers: int, frames: int, device: torch.device
    ) -> None:
        self.sequences = build_sequences(shape)
        config = self.sequences.config
        self.frames_each, self.device = frames, device
        features = (config.tokens_per_frame, config.language.hidden_size)
        size = config.vision.image_size
        self.ring = FrameRing(1 + num_workers * frames, size, device, features)
        answers = AnswerTable(self.sequences.answers, self.sequences.pad_id).to(device)
        captured = device.type == "cuda"
        # A decision of every process, with the frames since the last one and the black one.
        rows = MOST_UNITS * num_workers + 1
        self.student = Student(model, answers, self.sequences, self.ring, captured, rows)
        if captured:
            self.student.capture()
        self.laps = np.zeros(num_workers, np.int64)  # episodes begun by each process

    def put(self, worker: int, first: int, frames: np.ndarray) -> None:
        """Frames (n, S, S, 3) of a process' episode, from the `first`th on."""
        begin = 1 + worker * self.frames_each + first
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        self.ring.pixels[begin : begin + len(frames)] = pixels

    def row(self, worker: int, num_frames: int, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        """(T,) tickets shown and (L,) prompt of a robot that has taken `num_frames`."""
        indices = history_indices(num_frames, self.sequences.config.num_video_frames)
        lap = self.laps[worker] * self.ring.capacity
        tickets = lap + 1 + worker * self.frames_each + np.maximum(indices, 0)
        prompt = self.sequences.navigation_prompt(instruction)
        return np.where(indices < 0, BLACK_SLOT, tickets), prompt

    def decide(self, rows: list[tuple[np.ndarray, np.ndarray]], allowed: np.ndarray) -> np.ndarray:
        """(n,) greedy actions."""
        ids = np.full((len(rows), self.sequences.prompt_length), self.sequences.pad_id, np.int64)
        for row, (_, prompt) in enumerate(rows):
            ids[row, : len(prompt)] = prompt
        shown = np.stack([tickets for tickets, _ in rows])
        lengths = np.array([len(prompt) for _, prompt in rows])
        return self.student.decide(shown, ids, lengths, np.ones(len(rows), bool), allowed)


class Exams(FrameWorkers):
    """The processes, and the waves of arms that they examine."""

    def __init__(self, run: Path, num_workers: int, most: int, device: torch.device) -> None:
        self.run, self.most, self.device = run, most, device
        self.size = build_sequences().config.vision.image_size
        self.num_frames = 1 + MOST_UNITS * most
        shape = (MAX_ARMS, self.num_frames, self.size, self.size, 3)
        super().__init__(work, shape, [(shape, most)] * num_workers)

    def wave(
        self, names: list[str], models: list[Nvila], shapes: list[NetworkShape], seeds
    ) -> dict[str, int]:
        """Examines some arms on all seeds; returns in how many episodes each arrived."""
        workers = range(len(self.connections))
        self.examiners = [
            Examiner(model, shape, len(workers), self.num_frames, self.device)
            for model, shape in zip(models, shapes, strict=True)
        ]
        self.sent = np.zeros((len(workers), len(names)), np.int64)
        waiting, busy, arrived = list(seeds), set(), dict.fromkeys(names, 0)

        def give(worker: int) -> None:
            busy.discard(worker)
            if waiting:
                self.sent[worker] = 0
                for examiner in self.examiners:
                    examiner.laps[worker] += 1
                self.connections[worker].send((waiting.pop(0), len(names)))
                busy.add(worker)

        for worker in workers:
            give(worker)
        with (self.run / EXAMS_FILE).open("a") as file:
            while busy:
                ready = wait([self.connections[worker] for worker in busy])
                asking = []
                for worker in [w for w in busy if self.connections[w] in ready]:
                    message = self.connections[worker].recv()
                    if isinstance(message, str):
                        raise RuntimeError(f"exam process {worker} failed:\n{message}")
                    if isinstance(message, Asked):
                        asking.append((worker, message))
                        continue
                    for result in message:
                        arrived[names[result.arm]] += result.line["success"]
                        file.write(json.dumps({"arm": names[result.arm], **result.line}) + "\n")
                    file.flush()
                    give(worker)
                if asking:
                    self._answer(asking)
        return arrived

    def _answer(self, asking: list[tuple[int, Asked]]) -> None:
        actions = {worker: np.zeros(len(asked.arms), np.int64) for worker, asked in asking}
        for arm, examiner in enumerate(self.examiners):
            rows, allowed, places = [], [], []
            for worker, asked in asking:
                for place in np.flatnonzero(asked.arms == arm):
                    first, number = self.sent[worker, arm], int(asked.num_frames[place])
                    examiner.put(worker, first, self.frames[worker][arm, first:number])
                    self.sent[worker, arm] = number
                    rows.append(examiner.row(worker, number, asked.instruction))
                    allowed.append(asked.allowed[place])
                    places.append((worker, place))
            if rows:
                found = examiner.decide(rows, np.stack(allowed))
                for (worker, place), action in zip(places, found, strict=True):
                    actions[worker][place] = action
        for worker, _ in asking:
            self.connections[worker].send(actions[worker])


def _examine_as_they_come(
    exams: Exams, given: argparse.Namespace, began_s: float, released: Nvila, log: Path
) -> None:
    """Wave after wave of the arms that are done, until the log says that no other comes."""
    first, _, last = given.seeds.partition(":")
    seeds, tower = range(int(first), int(last)), released.vision_tower.state_dict()
    seen: set[str] = set()
    while time.monotonic() - began_s < given.until:
        is_over = '"done"' in log.read_text()
        folders = sorted((given.run / "arms").glob("*"), key=lambda p: p.stat().st_mtime)
        new = [folder for folder in folders if folder.name not in seen][: MAX_ARMS - 1]
        if not new:
            if is_over:
                return
            time.sleep(0.5)
            continue
        begin_s, names = time.monotonic(), [folder.name for folder in new]
        networks = [load_arm(folder, tower, exams.device) for folder in new]
        if given.examine_released and "released" not in seen:
            names.append("released")
            networks.append((released.to(exams.device).eval(), NetworkShape()))
        seen.update(names)
        models, shapes = zip(*networks, strict=True)
        arrived = exams.wave(names, list(models), list(shapes), seeds)
        print(f"arrived: {arrived}, {time.monotonic() - begin_s:.1f} s", flush=True)


def main() -> None:
    """Command line of the exams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seeds", default="900000:900200")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--decisions", type=int, default=80, help="most of them in an episode")
    parser.add_argument("--until", type=float, default=720.0, help="seconds; no wave begins later")
    parser.add_argument("--released", default="models/nano", help="whose tower frozen arms have")
    parser.add_argument("--examine-released", action="store_true", help="in the first wave, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    began_s, device = time.monotonic(), torch.device(given.device)
    torch.set_float32_matmul_precision("high")
    released, _ = weights.load(given.released)
    log = given.run / LOG_FILE
    while not (log.is_file() and log.read_text()):  # the cores belong to the corpus until then
        time.sleep(0.5)
    exams = Exams(given.run, given.workers, given.decisions, device)
    try:
        _examine_as_they_come(exams, given, began_s, released, log)
    finally:
        exams.close()
    print("exams are over", flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Takes in what the fleets send and lets the student answer them, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from nvila_ros.training.fleet_labels import DecisionLabels
from nvila_ros.training.fleet_pool import Finished, FleetPool, Started, Step
from nvila_ros.training.fleet_settings import EXAM, ORACLE, STUDENT, FleetSettings
from nvila_ros.training.replay import EpisodeRecord, Replay, ViewRecord
from nvila_ros.training.student import Student

POLL_S = 0.01


@dataclass
class Round:
    """One fleet's round under way."""

    started: Started
    tickets: np.ndarray  # (K, max_frames) int64
    steps: list[dict[str, np.ndarray]] = field(default_factory=list)
    views: list[ViewRecord] = field(default_factory=list)


def _decisions(labels: DecisionLabels, shown: np.ndarray) -> dict[str, np.ndarray]:
    """A step's decisions as arrays: robots', then twins', which show what their robots do."""
    found = {
        "rows": labels.robots,
        "shown_tickets": shown,
        "last_frame": labels.last_frame,
        "costs": labels.costs,
        "targets": labels.targets,
        "clause": labels.clause,
    }
    twins = labels.twins
    if twins is None:
        return found
    more = {
        "rows": twins.rows,
        "shown_tickets": shown[twins.position],
        "last_frame": labels.last_frame[twins.position],
        "costs": twins.costs,
        "targets": twins.targets,
        "clause": twins.clause,
    }
    return {name: np.concatenate([array, more[name]]) for name, array in found.items()}


class Collector:
    """Owns the fleets' side of the replay; `start` and `stop` its thread, then read its counts."""

    def __init__(
        self,
        pool: FleetPool,
        replay: Replay,
        student: Student,
        settings_now: Callable[[], FleetSettings],
    ) -> None:
        self.pool, self.replay, self.student = pool, replay, student
        self.settings_now = settings_now
        self.rounds: dict[int, Round] = {}
        self.results: dict[int, deque[bool]] = {
            driver: deque(maxlen=500) for driver in (ORACLE, STUDENT, EXAM)
        }
        self.num_frames = self.num_decisions = self.num_episodes = 0
        self.num_twin_decisions = 0
        self.waited_s = self.answered_s = 0.0
        self.error: BaseException | None = None
        device = replay.ring.pixels.device
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=-1) if self._is_cuda else None
        size = replay.ring.pixels.shape[1:]
        self._staging = torch.empty((1024, *size), dtype=torch.uint8, pin_memory=self._is_cuda)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begins to collect."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what is under way is dropped."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=30)

    def check(self) -> None:
        """Raises what ended the thread."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
                while not self._stop.is_set():
                    self.collect(POLL_S)
        except BaseException as error:  # the trainer's thread raises it
            self.error = error

    def collect(self, timeout_s: float = 0.0) -> None:
        """One look at all fleets."""
        begin_s = time.perf_counter()
        messages = self.pool.poll(timeout_s)
        self.waited_s += time.perf_counter() - begin_s
        asking: list[tuple[int, Step, np.ndarray]] = []
        for worker, message in messages:
            if isinstance(message, Started):
                tickets = np.zeros(self.pool.frames[worker].shape[:2], np.int64)
                self.rounds[worker] = Round(message, tickets)
            elif isinstance(message, Step):
                shown = self._take(worker, message)
                if message.asks:
                    asking.append((worker, message, shown))
            else:
                self._finish(worker, message)
        if asking:
            begin_s = time.perf_counter()
            self._answer(asking)
            self.answered_s += time.perf_counter() - begin_s
        self.replay.forget()

    def _take(self, worker: int, step: Step) -> np.ndarray:
        """Stores the step's new frames, decisions and views; returns (n, 8) tickets shown."""
        labels, frames, under_way = step.labels, self.pool.frames[worker], self.rounds[worker]
        spans = [
            frames[robot, first : last + 1]
            for robot, first, last in zip(
                labels.robots, labels.first_frame, labels.last_frame, strict=True
            )
        ]
        lengths = [len(span) for span in spans]
        staging = self._staging[: sum(lengths)]
        np.concatenate(spans, out=staging.numpy())
        tickets = self.replay.ring.put(staging)
        if self._stream is not None:
            self._stream.synchronize()  # the staging buffer is used again
        rows = np.repeat(labels.robots, lengths)
        columns = np.concatenate([np.arange(n) for n in lengths])
        columns += np.repeat(labels.first_frame, lengths)
        under_way.tickets[rows, columns] = tickets
        shown = under_way.tickets[labels.robots[:, None], np.maximum(labels.shown, 0)]
        shown[labels.shown < 0] = 0
        under_way.steps.append(_decisions(labels, shown))
        for view in labels.views:
            ticket = int(under_way.tickets[view.robot, view.frame])
            record = ViewRecord(
                ticket,
                view.patch_category,
                view.patch_colour,
                view.ids,
                view.supervised,
                under_way.started.apartment,
            )
            under_way.views.append(record)
        self.num_frames += len(tickets)
        self.num_decisions += len(labels.robots)
        return shown

    def _answer(self, asking: list[tuple[int, Step, np.ndarray]]) -> None:
        """Lets the student decide for every robot of the asking fleets, in one batch."""
        robots = [step.labels.robots for _, step, _ in asking]
        rounds = [self.rounds[worker].started for worker, _, _ in asking]

        def joined(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(parts)

        pairs = list(zip(rounds, robots, strict=True))
        driver = joined([started.driver[rows] for started, rows in pairs])
        wanted = driver != ORACLE
        actions = np.zeros(len(driver), np.int64)
        actions[wanted] = self.student.decide(
            joined([shown for _, _, shown in asking])[wanted],
            joined([started.prompt_ids[rows] for started, rows in pairs])[wanted],
            joined([started.lengths[rows] for started, rows in pairs])[wanted],
            joined([started.greedy[rows] for started, rows in pairs])[wanted],
            joined([step.labels.allowed for _, step, _ in asking])[wanted],
        )
        for (worker, _, _), rows in zip(asking, robots, strict=True):
            self.pool.answer(worker, actions[: len(rows)])
            actions = actions[len(rows) :]

    def _finish(self, worker: int, message: Finished) -> None:
        """Keeps the episodes, notes the results and lets the worker go on."""
        under_way = self.rounds.pop(worker)
        records = _records(under_way, message)
        self.replay.add(list(records.values()), under_way.views)
        self._keep(under_way, message, records)
        for driver, success in zip(message.driver, message.success, strict=True):
            self.results[int(driver)].append(bool(success))
        for row, record in records.items():
            is_twin = row >= len(message.driver)
            self.num_twin_decisions += record.num_decisions if is_twin else 0
        self.num_episodes += len(message.driver)
        self.pool.answer(worker, self.settings_now())

    def _keep(self, under_way: Round, message: Finished, records: dict[int, EpisodeRecord]) -> None:
        """For those who want to know more of a finished round than the replay does."""


def _records(under_way: Round, message: Finished) -> dict[int, EpisodeRecord]:
    """The round's episodes by the row of their prompt, robots first; idle twins left out."""
    started, steps = under_way.started, under_way.steps
    arrays = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
    rows = arrays.pop("rows")
    del arrays["last_frame"]
    records = {}
    for row in np.unique(rows[message.is_kept[rows]]).tolist():
        own = {name: array[rows == row] for name, array in arrays.items()}
        ids, length = started.prompt_ids[row], int(started.lengths[row])
        records[row] = EpisodeRecord.from_shown(ids, length, **own, apartment=started.apartment)
    return records

# SPDX-License-Identifier: Apache-2.0
"""Processes that each drive one fleet after another and hand frames over through shared memory.

Protocol, per round of a fleet: worker sends `Started`, then `Step`s; the trainer answers a step
that asks the student with actions; worker sends `Finished`. Frames lie in the worker's shared
buffer, which the next round overwrites: the trainer acknowledges a finished round once it has
copied them.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING

import numpy as np

from nvila_ros.training.frame_workers import FrameWorkers

if TYPE_CHECKING:  # workers import it only after they have chosen how to draw
    from nvila_ros.training.fleet_labels import DecisionLabels


@dataclass
class Started:
    """A round's prompts, of K robots and then of T twins, and who drives each robot."""

    prompt_ids: np.ndarray  # (K + T, L) int16 expanded ids, padded
    lengths: np.ndarray  # (K + T,) int64 length of each prompt
    robot_of: np.ndarray  # (K + T,) int64 robot whose frames each prompt goes with
    driver: np.ndarray  # (K,)
    greedy: np.ndarray  # (K,) bool: the student takes its likeliest action
    apartment: int  # its seed


@dataclass
class Step:
    """Labels of one decision of every active robot; `asks` when it wants the student's actions."""

    labels: DecisionLabels
    asks: bool


@dataclass
class Finished:
    """The fleet is through: per robot success, driver and number of decisions."""

    success: np.ndarray
    driver: np.ndarray
    num_decisions: np.ndarray
    is_kept: np.ndarray  # (K + T,) bool: not twins that hardly differ from their robots


@dataclass
class Failed:
    """A worker's traceback."""

    text: str


def _buffer_shape(settings) -> tuple[int, ...]:
    size = settings.image_size_px
    return (settings.num_robots, settings.max_frames, size, size, 3)


def _started(fleet, sequences) -> Started:
    prompts = [sequences.navigation_prompt(e.instruction) for e in fleet.told]
    ids = np.full((len(prompts), sequences.prompt_length), sequences.pad_id, np.int16)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts])
    return Started(ids, lengths, fleet.robot_of, fleet.driver, fleet.greedy, fleet.seed)


def _finished(fleet) -> Finished:
    robots = np.ones(len(fleet.episodes), bool)
    is_kept = np.concatenate([robots, fleet.twins.is_telling()])
    return Finished(fleet.success, fleet.driver, fleet.num_decisions, is_kept)


def _work(connection: Connection, memory_name: str, settings, seeds: tuple[int, int]) -> None:
    """One process: fleets from consecutive seeds until the pipe closes."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
    from nvila_ros.training.fleet import Fleet
    from nvila_ros.training.fleet_settings import ORACLE
    from nvila_ros.training.vocabulary import build_sequences

    sequences = build_sequences(settings.network)
    memory = SharedMemory(name=memory_name)
    frames = np.ndarray(_buffer_shape(settings), np.uint8, memory.buf)
    try:
        for seed in range(*seeds):
            fleet = Fleet(seed, settings, frames, sequences)
            while fleet.episodes:
                connection.send(_started(fleet, sequences))
                while fleet.active.any():
                    labels = fleet.labels()
                    asks = bool((fleet.driver[labels.robots] != ORACLE).any())
                    connection.send(Step(labels, asks))
                    fleet.advance(labels, connection.recv() if asks else None)
                connection.send(_finished(fleet))
                settings = connection.recv()  # acknowledges; may change the student's share
                fleet.begin_round(settings)
            fleet.close()
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    except Exception:
        connection.send(Failed(traceback.format_exc()))
    finally:
        memory.close()


class FleetPool(FrameWorkers):
    """Starts the workers and hands on their messages."""

    def __init__(
        self, num_workers: int, settings, first_seed: int, seeds_per_worker: int = 20_000
    ) -> None:
        self.settings = settings
        begins = range(first_seed, first_seed + num_workers * seeds_per_worker, seeds_per_worker)
        arguments = [(settings, (begin, begin + seeds_per_worker)) for begin in begins]
        super().__init__(_work, _buffer_shape(settings), arguments)

    def poll(self, timeout_s: float = 0.0):
        """(worker, message) of every worker that has one now; raises when a worker failed."""
        ready = wait(self.connections, timeout_s)
        messages = []
        for worker, connection in enumerate(self.connections):
            if connection not in ready:
                continue
            message = connection.recv()
            if isinstance(message, Failed):
                raise RuntimeError(f"fleet worker {worker} failed:\n{message.text}")
            messages.append((worker, message))
        return messages

    def answer(self, worker: int, reply) -> None:
        """Student's actions after an asking step, or settings after a finished fleet."""
        self.connections[worker].send(reply)

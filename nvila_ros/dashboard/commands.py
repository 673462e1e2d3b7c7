# SPDX-License-Identifier: Apache-2.0
"""What a page may ask for: the protocol that the ROS side fills, and the gate for instructions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from nvila_ros.errors import InstructionError
from nvila_ros.models.prompt import clean_instruction

MAX_CHARACTERS = 500  # of an instruction that is typed here; the model takes more
BURST = 3  # instructions at once, then one per interval
INTERVAL_S = 2.0


@dataclass(frozen=True)
class Answer:
    """What a service said."""

    success: bool
    message: str


class Commands(Protocol):
    """Thread-safe; nothing waits."""

    def instruct(self, text: str) -> None: ...

    def emergency_stop(self) -> None: ...

    def call(self, service: str) -> Future[Answer]:
        """A Trigger, for instance 'navigator/pause' or 'simulator/reset'."""
        ...

    def move_to_seed(self, seed: int) -> Future[Answer]:
        """Another apartment of the simulator."""
        ...


class InstructionGate:
    """Length, characters and rate of what is typed, over all pages together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._allowance, self._updated_s = float(BURST), clock()

    def check(self, text: str) -> str:
        """The cleaned text; InstructionError says why not."""
        if len(text) > MAX_CHARACTERS:
            raise InstructionError(
                f"the instruction has {len(text)} characters, at most {MAX_CHARACTERS} are taken"
            )
        cleaned = clean_instruction(text)
        with self._lock:
            now_s = self._clock()
            earned = (now_s - self._updated_s) / INTERVAL_S
            self._allowance, self._updated_s = min(BURST, self._allowance + earned), now_s
            if self._allowance < 1.0:
                raise InstructionError(
                    f"too many instructions; wait {INTERVAL_S:.0f} s, the robot cannot follow more"
                )
            self._allowance -= 1.0
        return cleaned

# SPDX-License-Identifier: Apache-2.0
"""Processes that each hand pictures over through shared memory and talk through a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np


class FrameWorkers:
    """Started together, ended by `close`.

    frames: of each worker its buffer, `shape` uint8; connections: to each, in the same order.
    """

    def __init__(
        self,
        target: Callable[..., None],
        shape: tuple[int, ...],
        arguments: Iterable[tuple[Any, ...]],
    ) -> None:
        """`target` is called with a connection, the memory's name and one worker's arguments."""
        context = get_context("spawn")
        self.memories, self.frames, self.connections, self.processes = [], [], [], []
        for given in arguments:
            memory = SharedMemory(create=True, size=int(np.prod(shape)))
            ours, theirs = context.Pipe()
            process = context.Process(
                target=target, args=(theirs, memory.name, *given), daemon=True
            )
            process.start()
            theirs.close()
            self.memories.append(memory)
            self.frames.append(np.ndarray(shape, np.uint8, memory.buf))
            self.connections.append(ours)
            self.processes.append(process)

    def close(self) -> None:
        """Ends the workers and frees the shared memory."""
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        self.frames.clear()
        for memory in self.memories:
            memory.close()
            memory.unlink()

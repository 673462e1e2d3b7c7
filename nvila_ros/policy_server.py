# SPDX-License-Identifier: Apache-2.0
"""The model's own process: what `nvila_ros.policy_process` starts. It ends when the node does."""

from __future__ import annotations

import logging
import os
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from nvila_ros.policy import NavigationPolicy


class PolicyServer:
    """One thread reads what the node sends and stores it; the main thread loads and thinks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._questions: queue.Queue[str] = queue.Queue()
        self._policy: NavigationPolicy | None = None
        self._problem: Exception | None = None  # of a message that has no answer of its own

    def run(self) -> None:
        """Loads, then answers until the node is gone."""
        _, arguments = self._connection.recv()
        self._answer(lambda: self._load(arguments))
        threading.Thread(target=self._read, name="from-node", daemon=True).start()
        while True:
            question = self._questions.get()
            self._answer(lambda: getattr(self, f"_{question}")())  # noqa: B023

    def _load(self, arguments: dict[str, Any]) -> Any:
        self._connection.send(("progress", f"reading {arguments['folder']}"))
        self._policy = NavigationPolicy.load(**arguments)
        return self._policy.special_tokens, _memory_bytes(), self._policy.notices

    def _decide(self) -> Any:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        assert self._policy is not None
        return self._policy.decide(), _memory_bytes()

    def _prepare(self) -> int:
        assert self._policy is not None
        return self._policy.prepare()

    def _strip(self) -> bytes | None:
        assert self._policy is not None
        return self._policy.strip()

    def _answer(self, work: Any) -> None:
        try:
            answer = ("value", work())
        except Exception as error:  # told, whatever it is: the node decides what it means
            answer = ("error", _portable(error))
        self._connection.send(answer)

    def _read(self) -> None:
        """Stores at once what only has to be stored, so that the node never waits."""
        assert self._policy is not None
        try:
            while True:
                message = self._connection.recv()
                try:
                    self._take(message)
                except Exception as error:  # the next decision tells it
                    self._problem = error
        except (EOFError, OSError):
            os._exit(0)  # the node is gone, and whatever is thought here is for nobody

    def _take(self, message: Any) -> None:
        assert self._policy is not None
        if message[0] == "observe":
            _, shape, (x_m, y_m, yaw_rad), stamp_s = message
            rgb = np.frombuffer(self._connection.recv_bytes(), np.uint8).reshape(shape)
            self._policy.observe(rgb, x_m, y_m, yaw_rad, stamp_s)
        elif message[0] == "reset":
            self._problem = None
            self._policy.reset(message[1])
        elif message[0] == "tried":
            self._policy.tried(message[1])
        else:
            self._questions.put(message[0])


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the journey, else its words."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))  # our own object, just made
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _memory_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(format="[%(levelname)s] %(name)s: %(message)s")
    logging.getLogger("nvila_ros").setLevel(logging.INFO)  # says which backend computes
    PolicyServer(Connection(int(os.environ["NVILA_POLICY_SOCKET"]))).run()


if __name__ == "__main__":
    main()

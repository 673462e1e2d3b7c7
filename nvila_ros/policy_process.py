# SPDX-License-Identifier: Apache-2.0
"""The policy in a process of its own: it may crash, hang or run out of memory, the node drives on.

The node sends what it sees and asks; a socket pair that only these two hold carries the messages.
Nothing that the node calls waits for the model, except `decide` and `prepare` in the worker thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from nvila_ros.decision import Decision
from nvila_ros.errors import NvilaError
from nvila_ros.models.prompt import navigation_prompt
from nvila_ros.patience import PATIENT_THREADS

MAX_WAITING_MESSAGES = 64  # a model process that stands still does not fill the memory
_END = ("end",)


class ModelProcessError(NvilaError):
    """The model's process has ended, or could not be started."""


class PolicyProcess:
    """A nvila_ros.policy.NavigationPolicy at the other end of a socket."""

    def __init__(self, num_frames: int, load_arguments: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        environment = {**PATIENT_THREADS, **os.environ}
        environment["NVILA_POLICY_SOCKET"] = str(theirs.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nvila_ros.policy_server"],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is the node's to handle
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._outgoing: queue.Queue[Any] = queue.Queue(MAX_WAITING_MESSAGES)
        self._num_history_frames = num_frames - 1
        self._special_tokens: tuple[str, ...] = ()
        self._memory_bytes = 0
        self.notices: tuple[str, ...] = ()  # see NavigationPolicy
        self.progress = "starting the model's process"
        self._call_lock = threading.Lock()
        self.num_dropped_images = 0
        self._sender = threading.Thread(target=self._send, name="to-model", daemon=True)
        self._sender.start()
        self._put(("load", load_arguments))

    @property
    def process_id(self) -> int:
        """Of the model's process."""
        return self._process.pid

    def wait_until_loaded(self) -> PolicyProcess:
        """Returns itself when the model can decide; the error of loading otherwise."""
        try:
            self._special_tokens, self._memory_bytes, self.notices = self._receive()
            self.progress = "loaded"
        except BaseException:
            self.kill()
            raise
        return self

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends it at once: what it held, on the GPU too, is free when this returns."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(queue.Full):
            self._outgoing.put_nowait(_END)

    def memory_bytes(self) -> int:
        """GPU memory after the last decision."""
        return self._memory_bytes

    def reset(self, instruction: str) -> None:
        """Begins an episode; InstructionError for text that cannot be used."""
        navigation_prompt(instruction, self._num_history_frames, self._special_tokens)
        self._put(("reset", instruction))

    def observe(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool:
        """Sends a (H, W, 3) uint8 image with its pose; False when it had to be left out."""
        try:
            self._outgoing.put_nowait(("observe", rgb.shape, (x_m, y_m, yaw_rad), stamp_s, rgb))
        except queue.Full:
            self.num_dropped_images += 1
            return False
        return True

    def decide(self) -> Decision:
        """Asks and waits."""
        begin_s = time.perf_counter()
        decision, self._memory_bytes = self._call("decide")
        assert isinstance(decision, Decision)
        object.__setattr__(decision, "latency_s", time.perf_counter() - begin_s)
        return decision

    def tried(self, decision: Decision) -> None:
        """Passed on."""
        self._put(("tried", decision))

    def prepare(self) -> int:
        """Asks and waits."""
        return int(self._call("prepare"))

    def strip(self) -> bytes | None:
        """Asks and waits."""
        return self._call("strip")

    def _call(self, name: str) -> Any:
        with self._call_lock:
            self._put((name,))
            return self._receive()

    def _put(self, message: Any) -> None:
        try:
            self._outgoing.put(message, timeout=0.05)
        except queue.Full:
            raise ModelProcessError("the model process reads nothing; it is stuck") from None

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            code = self._process.poll()
            raise ModelProcessError(
                f"the model process has ended (exit code {code}); its last words are in the log"
            ) from error
        if kind == "progress":
            self.progress = value
            return self._receive()
        if kind == "error":
            raise value
        return value

    def _send(self) -> None:
        while (message := self._outgoing.get()) is not _END:
            try:
                if message[0] == "observe":
                    self._connection.send(message[:-1])
                    self._connection.send_bytes(np.ascontiguousarray(message[-1]).data.cast("B"))
                else:
                    self._connection.send(message)
            except OSError:  # it has ended; whoever waits for an answer hears it
                return

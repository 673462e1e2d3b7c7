# SPDX-License-Identifier: Apache-2.0
"""Node processes of the demo: started apart from the terminal, watched for memory, always ended."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

INTERRUPT_TIMEOUT_S = 6.0  # a node publishes zero velocity and frees its memory in this time
TERMINATE_TIMEOUT_S = 3.0
MEMORY_INTERVAL_S = 0.5

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(None)


class ChildProcesses:
    """A context whose end is the end of all processes that were started in it."""

    def __init__(self, environment: Mapping[str, str], log_folder: Path) -> None:
        self._environment = dict(environment)
        self._log_folder = log_folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = contextlib.ExitStack()

    def __enter__(self) -> ChildProcesses:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Runs `python <arguments>`; what it prints goes to `<name>.log`."""
        log = self._logs.enter_context(self.log_path(name).open("wb"))
        # A session of its own: Ctrl-C reaches us first, and we end the children in order.
        self._children[name] = subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )

    def log_path(self, name: str) -> Path:
        """Where a process writes."""
        return self._log_folder / f"{name}.log"

    def last_lines(self, name: str, count: int = 12) -> str:
        """The end of what a process printed."""
        text = self.log_path(name).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-count:])

    def ended(self) -> list[str]:
        """Names of the processes that are no longer running."""
        return [name for name, child in self._children.items() if child.poll() is not None]

    def process_ids(self) -> list[int]:
        """Of the processes that run."""
        return [child.pid for child in self._children.values() if child.poll() is None]

    def stop(self) -> None:
        """Asks in the order of starting backwards, then insists; returns when all have ended."""
        for child in reversed(self._children.values()):
            for number, timeout_s in (
                (signal.SIGINT, INTERRUPT_TIMEOUT_S),
                (signal.SIGTERM, TERMINATE_TIMEOUT_S),
                (signal.SIGKILL, TERMINATE_TIMEOUT_S),
            ):
                if child.poll() is not None:
                    break
                child.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout_s)
        self._logs.close()


class PeakMemory:
    """Samples the memory of this process and the children; shared pages count once (PSS)."""

    def __init__(self, children: ChildProcesses) -> None:
        self._children = children
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            names = ["self", *map(str, self._children.process_ids())]
            self.peak_bytes = max(self.peak_bytes, sum(map(_memory_bytes, names)))
            if self._ended.wait(MEMORY_INTERVAL_S):
                return


def _end_with_parent() -> None:
    """In the child: Linux sends SIGTERM when the parent dies, however it dies."""
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _memory_bytes(process: str) -> int:
    """Proportional set size of a process, 0 when it has ended or the system does not tell."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0

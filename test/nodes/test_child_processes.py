# SPDX-License-Identifier: Apache-2.0
"""Node processes of the demo: asked to end, made to end, and their memory counted."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nvila_ros.nodes import child_processes
from nvila_ros.nodes.child_processes import ChildProcesses, PeakMemory

POLITE = (
    "import time; print('up', flush=True)\n"
    "try: time.sleep(60)\nexcept KeyboardInterrupt: print('bye')"
)
STUBBORN = (
    "import signal, time\n"
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
    "print('up', flush=True); time.sleep(60)"
)


@pytest.fixture
def children(tmp_path):
    with ChildProcesses(os.environ, tmp_path) as children:
        yield children


def start(children, name: str, code: str) -> None:
    children.start(name, ["-c", code])
    end_s = time.monotonic() + 20.0
    while "up" not in children.last_lines(name) and time.monotonic() < end_s:
        time.sleep(0.02)


def test_children_are_asked_first(children):
    start(children, "polite", POLITE)
    assert children.ended() == []
    children.stop()
    assert children.ended() == ["polite"] and "bye" in children.last_lines("polite")


def test_children_that_do_not_listen_are_killed(children, monkeypatch):
    monkeypatch.setattr(child_processes, "INTERRUPT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(child_processes, "TERMINATE_TIMEOUT_S", 0.2)
    start(children, "stubborn", STUBBORN)
    children.stop()
    assert children.process_ids() == []


def test_a_child_that_ended_is_named_with_its_words(children):
    children.start("brief", ["-c", "print('up'); raise SystemExit(3)"])
    end_s = time.monotonic() + 20.0
    while not children.ended() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert children.ended() == ["brief"] and children.last_lines("brief") == "up"


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from nvila_ros.nodes.child_processes import ChildProcesses\n"
        f"children = ChildProcesses(os.environ, Path({str(tmp_path)!r}))\n"
        "children.start('polite', ['-c', 'import time; time.sleep(60)'])\n"
        "print(children.process_ids()[0], flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end_s = time.monotonic() + 10.0
    while _runs(child) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process_id: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{process_id}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_memory_of_children_is_counted(children):
    with PeakMemory(children) as alone:
        time.sleep(0.05)
    start(children, "large", "data = b'x' * 80_000_000; " + POLITE)
    with PeakMemory(children) as together:
        time.sleep(0.05)
    assert together.peak_bytes - alone.peak_bytes > 60_000_000

# SPDX-License-Identifier: Apache-2.0
"""The dashboard beside the demo: its address is shown, and its end is not the drive's."""

import importlib.util
import io
import sys
import time

import pytest
from rich.console import Console

from nvila_ros.nodes import demo_dashboard
from nvila_ros.nodes.child_processes import ChildProcesses


@pytest.fixture
def started(tmp_path):
    """Instead of the dashboard runs what a test gives; (dashboard, what was printed)."""
    printed = io.StringIO()
    with ChildProcesses({"PATH": ""}, tmp_path) as children:

        def start(program):
            start_child = children.start
            children.start = lambda name, _arguments: start_child(name, ["-c", program])
            made = demo_dashboard.DemoDashboard(children, Console(file=printed, soft_wrap=True))
            made.start()
            return made, printed

        yield start


def look_until(dashboard, printed, word):
    end_s = time.monotonic() + 20.0
    while word not in printed.getvalue() and time.monotonic() < end_s:
        dashboard.look()
        time.sleep(0.02)
    return printed.getvalue()


@pytest.fixture
def with_nicegui(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: sys)


def test_its_address_is_shown_once(started, with_nicegui):
    url = "http://127.0.0.1:5/?token=[a]b"
    dashboard, printed = started(f"print('open {url}', flush=True); import time; time.sleep(60)")
    assert url in look_until(dashboard, printed, "http://")
    dashboard.look()
    assert printed.getvalue().count("http://") == 1


def test_one_that_ends_is_told_once_with_its_log(started, with_nicegui, tmp_path):
    dashboard, printed = started("raise SystemExit(3)")
    assert str(tmp_path / "dashboard.log") in look_until(dashboard, printed, "goes on")
    dashboard.look()
    assert printed.getvalue().count("no dashboard") == 1


def test_without_nicegui_nothing_starts_and_the_remedy_is_told(started, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    dashboard, printed = started("raise SystemExit(3)")
    dashboard.look()
    assert ".[dashboard]" in printed.getvalue()
    assert "goes on" not in printed.getvalue()

# SPDX-License-Identifier: Apache-2.0
"""The dashboard beside the demo: started with it, shown once it is there, waited for by nobody."""

from __future__ import annotations

import importlib.util
import re

from rich.console import Console

from nvila_ros.errors import install_hint
from nvila_ros.nodes.child_processes import ChildProcesses

NAME = "dashboard"


class DemoDashboard:
    """A process of its own; without NiceGUI, or when it ends, the demo goes on and says so."""

    def __init__(self, children: ChildProcesses, console: Console) -> None:
        self._children, self._console = children, console
        self._is_awaited = False

    def start(self) -> None:
        """Begins to start, where NiceGUI is installed; says how to have it where it is not."""
        if importlib.util.find_spec("nicegui") is None:
            self._console.print(
                f"no dashboard, NiceGUI is not installed: {install_hint('dashboard')}",
                markup=False,
            )
            return
        self._children.start(NAME, ["-m", "nvila_ros.cli", "dashboard", "--port", "0"])
        self._is_awaited = True

    def look(self) -> None:
        """Prints the address once it is known, or once that there will be none."""
        if not self._is_awaited:
            return
        text = self._children.last_lines(NAME, 100)
        if found := re.search(r"http://\S+", text):
            self._tell(f"watch and steer it in a browser: {found[0]}")
        elif NAME in self._children.ended():
            self._tell(f"no dashboard, the drive goes on: see {self._children.log_path(NAME)}")

    def _tell(self, line: str) -> None:
        self._console.print(line, markup=False)
        self._is_awaited = False

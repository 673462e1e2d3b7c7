# SPDX-License-Identifier: Apache-2.0
"""Units of work for tests."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_ros.errors import DataError
from nvila_ros.training.scale import Unit
from nvila_ros.training.simulator_source import SimulatorOptions


@dataclass(frozen=True)
class Squares:
    """Two files per unit; fails for the numbers that it is told to."""

    bad: tuple[int, ...] = ()

    def proof(self, unit: Unit) -> str:
        return f"{unit.name}.txt"

    def worker(self) -> Callable[[Unit], dict[str, bytes]]:
        return self.square

    def describe(self) -> dict[str, Any]:
        return {"what": "squares"}

    def square(self, unit: Unit) -> dict[str, bytes]:
        if unit.content in self.bad:
            raise DataError("this number is bad")
        value = str(unit.content**2).encode()
        return {f"{unit.name}.side": b"first", self.proof(unit): value}


SMALL = SimulatorOptions(stage="navigation", side_px=32, max_decisions=8)
UNITS = [Unit(f"u{number}", number) for number in range(6)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

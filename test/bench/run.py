# SPDX-License-Identifier: Apache-2.0
"""Runs every benchmark one after the other: a table on stderr, one JSON object on stdout."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import bench_decision
import bench_demo
import bench_simulator
from rich.console import Console
from rich.table import Table

BENCHMARKS = {
    "decision": bench_decision.run,
    "simulator": bench_simulator.run,
    "demo": bench_demo.run,
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    names = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested numbers as (dotted name, text)."""
    flat: list[tuple[str, str]] = []
    for key, value in result.items():
        if isinstance(value, dict):
            flat += rows(value, f"{prefix}{key}.")
        else:
            flat.append((prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return flat


def main() -> None:
    """Command line: names of benchmarks, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], default=[])
    chosen = parser.parse_args().names or list(BENCHMARKS)
    results: dict[str, Any] = {"machine": machine()}
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = BENCHMARKS[name]()
    table = Table("measurement", "value", title="benchmarks")
    for name, text in rows(results):
        table.add_row(name, text)
    Console(stderr=True).print(table)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

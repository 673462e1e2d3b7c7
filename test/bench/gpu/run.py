# SPDX-License-Identifier: Apache-2.0
"""`make bench-gpu`: measured, floor, ratio and peers on this GPU; writes docs/benchmarks/h100.json.

Every row stands alone: one that fails says why and the next one runs. `--only` picks rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import accuracy
import engine_rows
import linears
import peers
import persistent
import torch
import triton
from summary import summarise, text
from timing import gpu_state

import nvila_ros

REPOSITORY = Path(__file__).resolve().parents[3]
ROW_TIMEOUT_S = 180

# The row's name -> what measures it; what has a target and its peers come first.
ROWS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "lite8b": engine_rows.lite8b,
    "lite2b": engine_rows.lite2b,
    "own_bf16": peers.own_bf16,
    "qwen2_vl": peers.qwen2_vl,
    "gemv": linears.gemv,
    "gemm": linears.gemm,
    "accuracy": accuracy.accuracy,
    "persistent": persistent.persistent,
    "8b": engine_rows.two_by_two,
    "llama8b": engine_rows.llama8b,
    "15b": engine_rows.fifteen,
    "lite8b_fp16_tower": engine_rows.lite8b_fp16_tower,
}


def machine() -> dict[str, Any]:
    """What the figures depend on; BENCH_COMMIT names the commit where there is no repository."""
    commit = (
        os.environ.get("BENCH_COMMIT")
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True
        ).stdout.strip()
    )
    return {
        "gpu": torch.cuda.get_device_name(0),
        "capability": "sm_{}{}".format(*torch.cuda.get_device_capability(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "nvila_ros": nvila_ros.__version__,
        "commit": commit or "unknown",
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def measure(name: str) -> dict[str, Any]:
    """One row in this process."""
    begin_s = time.perf_counter()
    before = gpu_state()
    try:
        row = ROWS[name](torch.device("cuda"))
    except Exception:
        traceback.print_exc()
        row = {"error": traceback.format_exc(limit=-4)}
    row["took_s"] = round(time.perf_counter() - begin_s, 1)
    row["gpu_state"] = {"before": before, "after": gpu_state()}
    row["machine"] = machine()
    return row


class Apart:
    """One row in a process of its own: a kernel that fails takes its whole context along.

    The process is started ahead, imports what it needs and waits to be told: it holds no context
    and does nothing meanwhile.
    """

    def __init__(self, name: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "row.json"
        command = [sys.executable, __file__, "--row", name, "--json", str(self._path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def measure(self) -> dict[str, Any]:
        """Lets it begin; its row, or why there is none."""
        with self._folder:
            try:
                self._process.communicate("\n", timeout=ROW_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                return {"error": f"took longer than {ROW_TIMEOUT_S} s"}
            if not self._path.exists():
                return {"error": f"the process died with status {self._process.returncode}"}
            return json.loads(self._path.read_text())

    def cancel(self) -> None:
        """It is not needed."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def measure_all(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One after the other; while one is measured the next process gets ready."""
    following: Apart | None = Apart(names[0])
    try:
        for number, name in enumerate(names):
            current = following
            assert current is not None
            following = Apart(names[number + 1]) if number + 1 < len(names) else None
            yield name, current.measure()
    finally:
        if following is not None:
            following.cancel()


def merge(path: Path, name: str, row: dict[str, Any]) -> None:
    """The row beside those that the file already has; `machine` is the last row's.

    A row without any figure leaves what was measured before and says there why it failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.exists() else {"machine": {}, "rows": {}}
    held["machine"] = row.pop("machine", held["machine"])
    row |= {key: held["machine"][key] for key in ("commit", "measured_at") if held["machine"]}
    if "error" in row and name in held["rows"]:
        row = {**held["rows"][name], "last_failure": row}
    held["rows"][name] = row
    held["summary"] = summarise(held["rows"])
    path.write_text(json.dumps(held, indent=2) + "\n")


def main() -> int:
    """Command line; 0 if every chosen row was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "docs/benchmarks/h100.json")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU is found; nothing was measured", file=sys.stderr)
        return 3
    if arguments.row:
        if not sys.stdin.readline():
            return 1  # whoever started it is gone
        arguments.json.write_text(json.dumps(measure(arguments.row)))
        return 0
    chosen = arguments.only.split(",")
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    has_failed = False
    for name, row in measure_all(chosen):
        has_failed |= any("error" in key for key in row)
        merge(arguments.json, name, row)
        print(f"== {name}\n{engine_rows.table(name, row)}", flush=True)
    print(text(json.loads(arguments.json.read_text())["summary"]))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())

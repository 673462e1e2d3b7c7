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
from collections.abc import Callable
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

# The row's name -> what measures it; engine rows come first, peers last.
ROWS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "lite8b": engine_rows.lite8b,
    "lite8b_fp16_tower": engine_rows.lite8b_fp16_tower,
    "8b": engine_rows.two_by_two,
    "lite2b": engine_rows.lite2b,
    "llama8b": engine_rows.llama8b,
    "15b": engine_rows.fifteen,
    "accuracy": accuracy.accuracy,
    "persistent": persistent.persistent,
    "gemv": linears.gemv,
    "gemm": linears.gemm,
    "own_bf16": peers.own_bf16,
    "qwen2_vl": peers.qwen2_vl,
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


def measure_apart(name: str) -> dict[str, Any]:
    """One row in a process of its own: a kernel that fails takes its whole context along."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--row", name, "--json", str(path)]
        try:
            subprocess.run(command, timeout=ROW_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {ROW_TIMEOUT_S} s"}
        return json.loads(path.read_text()) if path.exists() else {"error": "the process died"}


def merge(path: Path, name: str, row: dict[str, Any]) -> None:
    """The row beside those that the file already has; `machine` is the last row's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.exists() else {"machine": {}, "rows": {}}
    held["machine"] = row.pop("machine", held["machine"])
    row |= {key: held["machine"][key] for key in ("commit", "measured_at") if held["machine"]}
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
        arguments.json.write_text(json.dumps(measure(arguments.row)))
        return 0
    chosen = arguments.only.split(",")
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    has_failed = False
    for name in chosen:
        row = measure_apart(name)
        has_failed |= any("error" in key for key in row)
        merge(arguments.json, name, row)
        print(f"== {name}\n{engine_rows.table(name, row)}", flush=True)
    print(text(json.loads(arguments.json.read_text())["summary"]))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())

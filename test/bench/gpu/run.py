# SPDX-License-Identifier: Apache-2.0
"""`make bench-gpu`: measured, floor, ratio and peers on this GPU; writes docs/benchmarks/h100.json.

Every row stands alone: one that fails says why and the next one runs. `--only` picks rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_rows
import linears
import peers
import shapes
import torch
import triton
from timing import gpu_state

import nvila_ros

REPOSITORY = Path(__file__).resolve().parents[3]
DEVICE = torch.device("cuda")

# The row's name -> what measures it; engine rows come first, peers last.
ROWS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "lite8b": engine_rows.lite8b,
    "8b": engine_rows.two_by_two,
    "lite2b": engine_rows.lite2b,
    "llama8b": engine_rows.llama8b,
    "15b": engine_rows.fifteen,
    "gemv": linears.gemv,
    "gemm": linears.gemm,
    "own_bf16": peers.own_bf16,
    "qwen2_vl": peers.qwen2_vl,
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(0),
        "capability": "sm_{}{}".format(*torch.cuda.get_device_capability(0)),
        "gpu_state_before": gpu_state(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "nvila_ros": nvila_ros.__version__,
        "commit": commit or "unknown",
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """Rows found now beside those that the file already had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.exists() else {}
    held["machine"] = found["machine"]
    held.setdefault("rows", {}).update(found["rows"])
    path.write_text(json.dumps(held, indent=2) + "\n")


def main() -> int:
    """Command line; 0 if every chosen row was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "docs/benchmarks/h100.json")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if not torch.cuda.is_available():
        print("no CUDA GPU is found; nothing was measured", file=sys.stderr)
        return 3
    found: dict[str, Any] = {"machine": machine(), "rows": {}}
    failed = 0
    for name in chosen:
        begin_s = time.perf_counter()
        try:
            row = ROWS[name](DEVICE)
        except Exception:
            failed += 1
            row = {"error": traceback.format_exc(limit=-4)}
            traceback.print_exc()
        shapes.forget()
        row["took_s"] = round(time.perf_counter() - begin_s, 1)
        row["gpu_state_after"] = gpu_state()
        found["rows"][name] = row
        write(arguments.json, found)
        print(f"== {name}\n{engine_rows.table(name, row)}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

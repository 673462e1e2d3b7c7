# SPDX-License-Identifier: Apache-2.0
"""How much memory the demo's processes take together, and how long it runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nvila_ros.cli import NANO_FOLDER


def run(timeout_s: float = 60.0) -> dict[str, Any]:
    """One demo in a folder of its own; skipped, and said so, without a model."""
    if not (NANO_FOLDER / "config.json").exists():
        return {"skipped": f"there is no model in {NANO_FOLDER.name}"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "nvila_ros.cli", "demo", "--output", folder]
        command += ["--timeout-s", str(timeout_s)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return {"skipped": done.stderr.strip()[-300:]}
        result = json.loads((Path(folder) / "result.json").read_text())
    return {
        "peak_memory_gb": result["peak_memory_bytes"] / 1e9,
        "decision_latency_p50_ms": 1e3 * result["decision_latency"]["p50_s"],
        "decision_latency_p95_ms": 1e3 * result["decision_latency"]["p95_s"],
        "total_wall_s": result["total_wall_s"],
        "goal_peak_memory_gb": 2.5,
        "goal_total_wall_s": 180.0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout-s", type=float, default=60.0)
    print(json.dumps(run(parser.parse_args().timeout_s), indent=2))

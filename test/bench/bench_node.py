# SPDX-License-Identifier: Apache-2.0
"""The navigator node with the shipped model: from image to motion, jitter of cmd_vel, waiting."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from node_drives import Drives


def percentiles_ms(values_s: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest."""
    if not values_s:
        return {}
    named = {f"p{percent}": np.percentile(values_s, percent) for percent in (50, 95, 99)}
    return {name: round(1e3 * float(value), 2) for name, value in named.items()} | {
        "max": round(1e3 * max(values_s), 2),
        "count": len(values_s),
    }


def run(num_episodes: int = 3, image_px: tuple[int, int] = (640, 480), **navigator: Any) -> Any:
    """Drives the same episode some times."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, Drives(Path(folder), image_px, **navigator) as d:
        for _ in range(num_episodes):
            d.drive()
        heard = d.heard
    # Commands between two ticks, given because an answer came, are early and not late.
    jitter_s = [max(0.0, interval_s - 0.05) for interval_s in heard.intervals_s]
    return {
        "image_px": list(image_px),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "results": heard.results,
        "num_decisions": heard.num_decisions,
        "image_to_first_command_ms": percentiles_ms(heard.first_command_s),
        "of_it_beside_the_model_ms": percentiles_ms(heard.overhead_s),
        "model_ms": percentiles_ms(heard.latency_s),
        "command_lateness_ms": percentiles_ms(jitter_s),
        "waiting_share": [round(share, 4) for share in heard.waiting_shares],
        "goals": {"beside_the_model_p50_ms": 5.0, "jitter_p99_ms": 10.0, "waiting_share": 0.05},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--no-thinking-ahead", action="store_true")
    given = parser.parse_args()
    extra = {"thinking.ahead": "false"} if given.no_thinking_ahead else {}
    print(json.dumps(run(given.episodes, (given.width, given.height), **extra), indent=2))

# SPDX-License-Identifier: Apache-2.0
"""Soak: episode after episode for an hour; memory must stay flat and no command may come late.

`make soak` runs an hour, `make soak SOAK_ARGS='--minutes 2'` what a build machine can spare. Writes
one JSON object; ends with 1 when memory grew, a node died, or an episode did not end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from node_drives import Drives

COMMAND_DEADLINE_S = 0.25  # the bound of docs/safety.md
MAX_GROWTH_MB = 20.0  # of all processes, last third against second
SHORT_MINUTES, MAX_SHORT_GROWTH_MB = 10.0, 150.0  # few episodes: one large scene is no leak
MAX_LATE_SHARE = 0.001  # commands later than the deadline: the machine may stall, the node may not


def memory_mb(process_ids: list[int]) -> float:
    """Proportional set size of the processes together."""
    total_kb = 0
    for process_id in process_ids:
        try:
            text = Path(f"/proc/{process_id}/smaps_rollup").read_text()
        except OSError:
            continue
        total_kb += next(int(row.split()[1]) for row in text.splitlines() if row[:4] == "Pss:")
    return total_kb / 1024


def soak(minutes: float, seed: int, *, judges_lateness: bool = True) -> dict[str, Any]:
    """Drives until the time is over."""
    begin_s, memory = time.monotonic(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        Drives(Path(folder), seed=seed, max_decisions=60) as drives,
    ):
        while time.monotonic() - begin_s < 60.0 * minutes:
            result = drives.drive()
            memory.append(memory_mb(drives.process_ids()))
            number = len(memory)
            minute = (time.monotonic() - begin_s) / 60
            print(
                f"{minute:6.1f} min  episode {number:4d}  {result:<14} {memory[-1]:7.1f} MB",
                file=sys.stderr,
            )
        heard = drives.heard
    third = max(1, len(memory) // 3)
    growth_mb = float(np.median(memory[-third:]) - np.median(memory[third : 2 * third] or memory))
    late = sum(interval_s > COMMAND_DEADLINE_S for interval_s in heard.intervals_s)
    allowed_mb = MAX_SHORT_GROWTH_MB if minutes < SHORT_MINUTES else MAX_GROWTH_MB
    late_share = late / max(1, len(heard.intervals_s))
    return {
        "minutes": round((time.monotonic() - begin_s) / 60, 1),
        "seed": seed,
        "load_after": os.getloadavg()[0],
        "num_episodes": len(memory),
        "num_decisions": heard.num_decisions,
        "results": {name: heard.results.count(name) for name in sorted(set(heard.results))},
        "memory_mb_first_last": [round(memory[0], 1), round(memory[-1], 1)],
        "memory_growth_mb": round(growth_mb, 2),
        "num_commands": len(heard.intervals_s),
        "num_late_commands": late,
        "worst_interval_s": round(max(heard.intervals_s), 3),
        "waiting_share_mean": round(float(np.mean(heard.waiting_shares)), 4),
        "passed": growth_mb <= allowed_mb and (late_share <= MAX_LATE_SHARE or not judges_lateness),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument(
        "--shared-machine", action="store_true", help="late commands are told, not judged"
    )
    given = parser.parse_args()
    outcome = soak(given.minutes, given.seed, judges_lateness=not given.shared_machine)
    print(json.dumps(outcome, indent=2))
    sys.exit(0 if outcome["passed"] else 1)

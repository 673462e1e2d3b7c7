# SPDX-License-Identifier: Apache-2.0
"""Soak: episode after episode for an hour; memory must stay flat and no command may come late.

`make soak` runs an hour, `make soak SOAK_ARGS='--minutes 2'` what a build machine can spare. The
report is a file that is written anew after every episode (runs/soak/report.json), so that nothing
is lost by whatever ends the run; what it keeps of an episode is a few numbers. Ends with 1 when
memory grew, commands came late, a node died, or an episode did not end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from node_drives import Drives, Heard
from soak_report import SoakReport

EPISODE_TIMEOUT_S = 300.0
PROCESSES = ("simulator_node", "navigator_node", "policy_server")  # the last one is the model's


def memory_mb(process_ids: list[int]) -> dict[str, float]:
    """What each process has for itself and in shared memory, MB, by its name.

    Pages of files (torch's libraries) are left out: of those a process is charged more whenever
    another one on the machine that shares them ends.
    """
    found: dict[str, float] = {}
    for process_id in process_ids:
        folder = Path("/proc") / str(process_id)
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
            text = (folder / "smaps_rollup").read_text()
        except OSError:
            continue
        name = next((name for name in PROCESSES if name in command), "other")
        rows = (row.split() for row in text.splitlines()[1:])
        total_kb = sum(int(row[1]) for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))
        found[name] = found.get(name, 0.0) + total_kb / 1024
    return found


def soak(report: SoakReport, minutes: float, seeds: list[int], log_folder: Path) -> None:
    """Drives until the time is over; what ends it early is in the report."""
    begin_s = time.monotonic()
    try:
        with Drives(log_folder, seed=seeds[0], max_decisions=60) as drives:
            while time.monotonic() - begin_s < 60.0 * minutes:
                number = report.num_episodes
                drives.move(seeds[number % len(seeds)])
                result = drives.drive(EPISODE_TIMEOUT_S)
                memory = memory_mb(drives.process_ids())
                minute = (time.monotonic() - begin_s) / 60.0
                report.add(minute, drives.seed, result, drives.heard, memory)
                drives.heard = Heard()  # nothing of it is kept
                report.write()
                print(
                    f"{minute:6.1f} min  episode {number + 1:4d}  apartment {drives.seed}  "
                    f"{result:<14} {sum(memory.values()):7.1f} MB",
                    file=sys.stderr,
                    flush=True,
                )
    except KeyboardInterrupt:
        report.failure = "interrupted"
    except (RuntimeError, TimeoutError) as error:
        report.failure = f"{type(error).__name__}: {error}"
    report.minutes = (time.monotonic() - begin_s) / 60.0
    report.is_over = True
    report.write()


def interrupt(_number: int, _frame: Any) -> None:
    """SIGTERM ends it as Ctrl-C does: with a report, and no process left."""
    raise KeyboardInterrupt


def main() -> int:
    """Command line; 0 where everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=900_000, help="the first apartment")
    parser.add_argument("--apartments", type=int, default=5, help="taken in turn")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    parser.add_argument(
        "--shared-machine", action="store_true", help="late commands are told, not judged"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "report.json"
    report = SoakReport(path, given.minutes, judges_lateness=not given.shared_machine)
    print(f"the report is {path}; load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    seeds = [given.seed + number for number in range(max(1, given.apartments))]
    soak(report, given.minutes, seeds, given.output / "log")
    summary = report.summary()
    print(json.dumps(summary, indent=2))
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())

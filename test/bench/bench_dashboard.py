# SPDX-License-Identifier: Apache-2.0
"""What the dashboard costs: decision latency without and with it, alone or beside a browser."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_node import percentiles_ms
from node_drives import Drives

HERE = Path(__file__).resolve().parent
NUM_RESAMPLES = 2000
BLOCKS = ("without", "with", "with_chromium")


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of ours, ended by Ctrl-C's signal."""
    made = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield made
    finally:
        made.send_signal(signal.SIGINT)
        try:
            made.wait(10)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()


@contextlib.contextmanager
def dashboard() -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    with process("-m", "nvila_ros.cli", "dashboard", "--port", "0") as made:
        assert made.stdout is not None
        for line in made.stdout:
            if found := re.search(r"http://\S+", line):
                yield found.group(0), made.pid
                return
        raise RuntimeError("the dashboard did not begin")


@contextlib.contextmanager
def chromium(url: str, *, loads: int = 1) -> Iterator[list[float]]:
    """A headless page that stays open; seconds of each load until everything can be used."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        times_s = []
        for number in range(loads):
            page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            page.set_default_timeout(60_000)
            begin_s = time.monotonic()
            page.goto(url, wait_until="commit")
            page.locator("[data-test=camera] img").first.wait_for()
            times_s.append(time.monotonic() - begin_s)
            if number < loads - 1:
                page.context.close()
        yield times_s
        browser.close()


def processor_s(process_id: int) -> float:
    """Seconds of processor that a process has used."""
    words = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def difference_ms(rounds: list[dict[str, list[float]]], block: str) -> dict[str, Any]:
    """Of the medians, round by round, with the middle 95 % of what resampling makes of it.

    Rounds are compared within themselves: other load on the machine comes and goes between them.
    """
    rng = np.random.default_rng(0)

    def mean_shift_s(resampled: bool) -> float:
        shifts = []
        for latency_s in rounds:
            pair = [np.asarray(latency_s[name]) for name in (block, "without")]
            if resampled:
                pair = [rng.choice(values, len(values)) for values in pair]
            shifts.append(np.median(pair[0]) - np.median(pair[1]))
        return float(np.mean(shifts))

    low, high = np.percentile([mean_shift_s(True) for _ in range(NUM_RESAMPLES)], (2.5, 97.5))
    return {
        "median": round(1e3 * mean_shift_s(False), 2),
        "interval": [round(1e3 * float(value), 2) for value in (low, high)],
    }


class Costs:
    """Processor time of some processes beside wall time."""

    def __init__(self, **process_ids: int) -> None:
        self._process_ids = process_ids
        self._begin_s = time.monotonic()
        self._used_s = {name: processor_s(one) for name, one in process_ids.items()}

    def row(self) -> dict[str, float]:
        """Share of one core that each took since the beginning."""
        wall_s = time.monotonic() - self._begin_s
        return {
            name: round((processor_s(one) - self._used_s[name]) / wall_s, 4)
            for name, one in self._process_ids.items()
        }


def navigator_id(drives: Drives) -> int:
    """Of the process whose costs must not change."""
    for process_id in drives.process_ids():
        if "navigator_node" in Path(f"/proc/{process_id}/cmdline").read_text():
            return process_id
    raise RuntimeError("no navigator is running")


def run(num_rounds: int = 4, num_loads: int = 5, blocks: tuple[str, ...] = BLOCKS) -> Any:
    """Blocks in turn, every other round backwards, so that other load meets all of them alike."""
    load_before = os.getloadavg()[0]
    rounds: list[dict[str, list[float]]] = []
    shares: dict[str, list[dict[str, float]]] = {block: [] for block in blocks}
    loads_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Drives(Path(folder), (640, 480)) as drives:

        def drive(block: str, **process_ids: int) -> None:
            first = len(drives.heard.latency_s)
            costs = Costs(navigator=navigator_id(drives), **process_ids)
            drives.drive()
            shares[block].append(costs.row())
            rounds[-1][block] = drives.heard.latency_s[first:]

        for number in range(num_rounds):
            rounds.append({})
            for block in blocks if number % 2 == 0 else blocks[::-1]:
                if block == "without":
                    drive(block)
                    continue
                with dashboard() as (url, process_id), contextlib.ExitStack() as viewers:
                    if block == "with":
                        viewers.enter_context(process(str(HERE / "light_viewer.py"), url))
                    else:
                        count = num_loads if number == 0 else 1
                        loads_s += viewers.enter_context(chromium(url, loads=count))
                    time.sleep(2.0)
                    drive(block, dashboard=process_id)
    return {
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "num_cores": len(os.sched_getaffinity(0)),
        "decision_ms": {
            block: percentiles_ms([value for latency_s in rounds for value in latency_s[block]])
            for block in blocks
        },
        "difference_ms": {block: difference_ms(rounds, block) for block in blocks[1:]},
        "processor_share": {
            block: {name: [row[name] for row in rows] for name in rows[0]}
            for block, rows in shares.items()
        },
        "page_load_s": [round(value, 2) for value in loads_s],
        "results": drives.heard.results,
        "goals": {"difference": "its interval holds 0", "page_load_s": 2.0},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--no-browser", action="store_true")
    given = parser.parse_args()
    wanted = BLOCKS[:2] if given.no_browser else BLOCKS
    print(json.dumps(run(given.rounds, given.loads, wanted), indent=2))

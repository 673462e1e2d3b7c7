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


def difference_ms(without_s: list[float], with_s: list[float]) -> dict[str, Any]:
    """Of the medians, with the middle 95 % of resampled ones."""
    rng = np.random.default_rng(0)
    before, after = np.asarray(without_s), np.asarray(with_s)
    resampled = [
        np.median(rng.choice(after, len(after))) - np.median(rng.choice(before, len(before)))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(resampled, (2.5, 97.5))
    shift = float(np.median(after) - np.median(before))
    return {"median": round(1e3 * shift, 2), "interval": [round(1e3 * v, 2) for v in (low, high)]}


def run(num_rounds: int = 3, num_loads: int = 5, blocks: tuple[str, ...] = BLOCKS) -> Any:
    """Blocks in turn, so that other load on the machine meets all of them alike."""
    load_before = os.getloadavg()[0]
    latency_s: dict[str, list[float]] = {block: [] for block in blocks}
    shares, loads_s = [], []
    with tempfile.TemporaryDirectory() as folder, Drives(Path(folder), (640, 480)) as drives:

        def drive(block: str) -> None:
            first = len(drives.heard.latency_s)
            drives.drive()
            latency_s[block] += drives.heard.latency_s[first:]

        for number in range(num_rounds):
            drive("without")
            for block in blocks[1:]:
                with dashboard() as (url, process_id), contextlib.ExitStack() as viewers:
                    if block == "with":
                        viewers.enter_context(process(str(HERE / "light_viewer.py"), url))
                    else:
                        count = num_loads if number == 0 else 1
                        loads_s += viewers.enter_context(chromium(url, loads=count))
                    time.sleep(2.0)
                    begin_s, used_s = time.monotonic(), processor_s(process_id)
                    drive(block)
                    used_s = processor_s(process_id) - used_s
                    shares.append(used_s / (time.monotonic() - begin_s))
    return {
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "num_cores": len(os.sched_getaffinity(0)),
        "decision_ms": {block: percentiles_ms(values) for block, values in latency_s.items()},
        "difference_ms": {
            block: difference_ms(latency_s["without"], latency_s[block]) for block in blocks[1:]
        },
        "dashboard_processor_share": [round(share, 3) for share in shares],
        "page_load_s": [round(value, 2) for value in loads_s],
        "results": drives.heard.results,
        "goals": {"difference": "its interval holds 0", "page_load_s": 2.0},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--no-browser", action="store_true")
    given = parser.parse_args()
    wanted = BLOCKS[:2] if given.no_browser else BLOCKS
    print(json.dumps(run(given.rounds, given.loads, wanted), indent=2))

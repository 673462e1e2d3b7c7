# SPDX-License-Identifier: Apache-2.0
"""Times of work on a GPU: medians of events, of graph replays and of the wall clock."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

L2_BYTES = 50e6
QUERIES = "name,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu,driver_version"


def events_ms(work: Callable[[], Any], num_runs: int = 10, num_warm_up: int = 2) -> float:
    """Median time on the device between the begin and the end of one call."""
    for _ in range(num_warm_up):
        work()
    pairs = []
    for _ in range(num_runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def after_idle_ms(work: Callable[[], Any], num_runs: int = 10, idle_s: float = 0.1) -> float:
    """Median time on the device of one call after a pause: of a decision of a robot that drives.

    From a pause the card comes cool and at its full clock, with cold caches, and nothing is queued
    ahead: what the processor takes to launch is in the figure.
    """
    work()
    times = []
    for _ in range(num_runs):
        torch.cuda.synchronize()
        time.sleep(idle_s)
        times.append(events_ms(work, 1, 0))
    return statistics.median(times)


def sustained_ms(work: Callable[[], Any], seconds: float = 1.0, num_each: int = 10) -> float:
    """Median time of one call in the second half of so long a series without a pause.

    The card lowers its clock after some tenths of a second of full load.
    """
    work()
    begin_s, times = time.perf_counter(), []
    while time.perf_counter() - begin_s < seconds:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(num_each + 1)]
        for mark in marks[:-1]:
            mark.record()
            work()
        marks[-1].record()
        torch.cuda.synchronize()
        times += [one.elapsed_time(two) for one, two in itertools.pairwise(marks)]
    return statistics.median(times[len(times) // 2 :])


def wall_ms(work: Callable[[], Any], num_runs: int = 5, num_warm_up: int = 1) -> float:
    """Median time until the result of one call has arrived."""
    times = []
    for index in range(num_runs + num_warm_up):
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if index >= num_warm_up:
            times.append(1e3 * (time.perf_counter() - begin_s))
    return statistics.median(times)


def rotated_us(works: Sequence[Callable[[], Any]], num_runs: int = 7) -> float:
    """Median time of one call where `works` do the same with other buffers, captured in a graph.

    Together the buffers must exceed the second-level cache several times.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for work in works:
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    return 1e3 * events_ms(graph.replay, num_runs) / len(works)


def gpu_state() -> dict[str, str]:
    """What the GPU says of itself; only asked, nothing is set."""
    command = ["nvidia-smi", f"--query-gpu={QUERIES}", "--format=csv,noheader", "-i", "0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(QUERIES.split(","), map(str.strip, line.split(",")), strict=False))


def process_memory_bytes() -> int:
    """What the driver says is in use on the first GPU, contexts included."""
    free, total = torch.cuda.mem_get_info(0)
    return total - free

# SPDX-License-Identifier: Apache-2.0
"""How fast a checkpoint of NVILA-Lite-8B's size loads and what memory it takes beside the network.

Random weights are written to the disk first and removed afterwards. Every load is a process of its
own with nothing of the files in the page cache. Three kinds of it:

device  what a GPU asks of the host: every byte is copied out of the mapped files into one small
        buffer, as for the copy to the card, and dropped; converting is the card's work
sink    every tensor is converted on the CPU as for a network in float16, and dropped
gpu     `weights.load` to the graphics card, where there is one; the network stays there
cpu     `weights.load`, the network stays; tensors stored in the wanted dtype are views of the file,
        which the disk reads at their first use: that is timed apart and counted in the rates

One thread computes: on a busy machine several wait for each other at every chunk.

Memory is sampled every 5 ms from /proc/self/status. `extra` is the most that was resident at once
(anonymous, and the files' mapped pages) above what there was before the load and beside the
network's own tensors; it is given over the largest file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import lite_8b, weight_files, write_checkpoint
from torch import Tensor

from nvila_ros.models import weights
from nvila_ros.models.headers import DTYPES
from nvila_ros.models.mapping import CHUNK_BYTES
from nvila_ros.models.nvila import Nvila

SAMPLE_S = 0.005
READ_BYTES = 16 << 20
KINDS = ("device", "sink", "cpu")


def drop_cache(paths: list[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_rate(paths: list[Path]) -> float:
    """Bytes per second of the disk alone: read in order, past the page cache, into one buffer."""
    buffer = mmap.mmap(-1, READ_BYTES)  # direct reading wants whole pages
    begin_s = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        position = 0
        while read := os.preadv(descriptor, [buffer], position):
            position += read
            if read < READ_BYTES:
                break  # the end; what follows is no whole page
        os.close(descriptor)
    return sum(path.stat().st_size for path in paths) / (time.perf_counter() - begin_s)


def resident() -> dict[str, int]:
    """Bytes of this process in memory: 'RssAnon' its own, 'RssFile' pages of mapped files."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    lines = (line.split() for line in text.splitlines() if line.startswith("Rss"))
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in lines}


class Watch:
    """Peaks of memory above a start, beside tensors that are known to be kept."""

    def __init__(self) -> None:
        self.kept = 0
        self.extra_anonymous = self.extra = 0
        self._start = resident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            kept, now = self.kept, resident()
            anonymous = now["RssAnon"] - self._start["RssAnon"] - kept
            mapped = now["RssFile"] - self._start["RssFile"]
            self.extra_anonymous = max(self.extra_anonymous, anonymous)
            self.extra = max(self.extra, anonymous + mapped)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Sample meanwhile."""
        self._thread.start()
        yield
        self._stopped.set()
        self._thread.join()


def to_device(view: Tensor, dtype: torch.dtype, used: Callable[[int], None]) -> Tensor:
    """The host's side of a copy to a card, which is not there: bytes into a buffer, then gone."""
    flat = view.reshape(-1).view(torch.uint8)
    for begin in range(0, flat.numel(), CHUNK_BYTES):
        piece = flat[begin : begin + CHUNK_BYTES]
        STAGING[: piece.numel()].copy_(piece)
        used(piece.numel())
    return torch.empty(view.shape, dtype=dtype, device="meta")


STAGING = torch.empty(CHUNK_BYTES, dtype=torch.uint8)


def child(kind: str, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """One load; what it took."""
    STAGING.zero_()
    if kind == "gpu":
        torch.zeros(1, device="cuda")  # the driver's own memory is not the load's
    watch = Watch()
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    with watch.running():
        if kind == "gpu":
            model = weights.load(folder, "cuda", dtype)[0]
            torch.cuda.synchronize()
        elif kind == "cpu":
            model = _load_watched(folder, dtype, watch)
        else:
            _, _, readers = weights.open_checkpoint(folder)
            for reader in readers.values():
                if kind == "device":
                    consume(reader.placed(torch.float16, to_device))
                else:
                    consume(reader.stream(torch.float16, torch.device("cpu")))
    result = {
        "seconds": time.perf_counter() - begin_s,
        "cpu_seconds": time.process_time() - begin_cpu_s,
        "extra_anonymous_bytes": watch.extra_anonymous,
        "extra_bytes": watch.extra,
        "network_bytes": watch.kept,
        "first_use_seconds": 0.0,
    }
    if kind == "cpu":
        begin_s = time.perf_counter()
        touch(model)
        result["first_use_seconds"] = time.perf_counter() - begin_s
    if kind == "gpu":
        result["network_bytes"] = sum(
            tensor.nbytes for tensor in (*model.parameters(), *model.buffers())
        )
        result["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
        result["gpu_name"] = torch.cuda.get_device_name()
    return result


def consume(items: Iterator[Any]) -> None:
    """Take each, keep none."""
    for item in items:
        del item


def _load_watched(folder: Path, dtype: torch.dtype, watch: Watch) -> Nvila:
    """As `weights.load`, telling the watch what the network keeps as it grows."""
    model, _, readers = weights.open_checkpoint(folder)
    for part, reader in readers.items():
        state = {}
        views = {entry.key for entry in reader.entries if DTYPES[entry.stored.dtype] == dtype}
        views -= reader.packed.shapes.keys()
        for key, tensor in reader.stream(dtype, torch.device("cpu")):
            state[key] = tensor
            watch.kept += 0 if key in views else tensor.nbytes
        model.get_submodule(part).load_state_dict(state, assign=True)
    return model


def touch(model: Nvila) -> None:
    """Use every page once, as the first decision does."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()


def measure(folder: Path, kinds: dict[str, str], num_runs: int) -> dict[str, Any]:
    """Each kind of load, cold, and the disk alone, in turns; median load, best disk."""
    paths = weight_files(folder)
    total, largest = sum(p.stat().st_size for p in paths), max(p.stat().st_size for p in paths)
    result: dict[str, Any] = {
        "files": len(paths),
        "gb": total / 1e9,
        "largest_file_gb": largest / 1e9,
    }
    for kind, dtype in kinds.items():
        runs, rates = [], []
        for _ in range(num_runs):
            rates.append(disk_rate(paths))
            drop_cache(paths)
            command = [sys.executable, __file__, "--child", kind, str(folder), dtype]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output))
        run = sorted(runs, key=lambda each: each["seconds"])[num_runs // 2]
        rate = max(rates)
        result[kind] = {
            "dtype": dtype,
            "seconds": run["seconds"],
            "cpu_seconds": run["cpu_seconds"],
            "first_use_seconds": run["first_use_seconds"],
            "load_average": os.getloadavg()[0],
            "gb_per_s": total / (run["seconds"] + run["first_use_seconds"]) / 1e9,
            "disk_gb_per_s": rate / 1e9,
            "of_disk_rate": total / (run["seconds"] + run["first_use_seconds"]) / rate,
            "extra_gb": run["extra_bytes"] / 1e9,
            "extra_anonymous_gb": run["extra_anonymous_bytes"] / 1e9,
            "extra_of_largest_file": run["extra_bytes"] / largest,
            "network_gb": run["network_bytes"] / 1e9,
            **{key: run[key] for key in ("gpu_peak_bytes", "gpu_name") if key in run},
            "all_disk_gb_per_s": [each / 1e9 for each in rates],
            "all_seconds": [each["seconds"] for each in runs],
        }
        print(kind, json.dumps(result[kind]), file=sys.stderr, flush=True)
    return result


def run(
    num_runs: int = 3, place: Path | None = None, *, num_float_layers: int = 8
) -> dict[str, Any]:
    """The whole int4 checkpoint, and one in bf16 with some of the decoder's 28 layers."""
    torch.set_num_threads(1)
    on_card = {"gpu": "float16"} if torch.cuda.is_available() else {}
    kinds = dict.fromkeys(KINDS, "float16") | on_card
    cases = {"awq": (lite_8b(num_layers=28, is_int4=True), kinds)}
    if num_float_layers:
        config = lite_8b(num_layers=num_float_layers, is_int4=False)
        wanted = {"device": "float16", "sink": "float16", "cpu": "bfloat16"} | on_card
        cases["bf16"] = config, wanted
    results: dict[str, Any] = {
        "goal_extra_of_largest_file": 1.2,
        "shape": "NVILA-Lite-8B, random weights",
        "num_threads": 1,
        "num_runs": num_runs,
    }
    for name, (config, chosen) in cases.items():
        with tempfile.TemporaryDirectory(dir=place, prefix="bench_load_") as folder:
            write_checkpoint(Path(folder), config)
            results[name] = {"decoder_layers": config.language.num_hidden_layers}
            results[name] |= measure(Path(folder), chosen, num_runs)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--place", type=Path, help="a folder on the disk that is measured")
    parser.add_argument("--float-layers", type=int, default=8, help="0: leave bf16 out")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FOLDER", "DTYPE"))
    options = parser.parse_args()
    if options.child:
        chosen, where, precision = options.child
        torch.set_num_threads(1)
        print(json.dumps(child(chosen, Path(where), getattr(torch, precision))))
    else:
        print(
            json.dumps(
                run(options.runs, options.place, num_float_layers=options.float_layers), indent=2
            )
        )

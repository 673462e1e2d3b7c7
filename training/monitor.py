# SPDX-License-Identifier: Apache-2.0
"""What a run says while it runs: a progress bar, TensorBoard, and one JSON line per logged step."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nvila_ros.training.flops import peak_flops

LOG_FILE = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step, over all ranks."""

    step: int  # steps done
    progress: float  # share of the stage, [0, 1]
    loss: float  # weighted mean over learned tokens
    samples: int  # seen since the stage's start
    step_samples: int
    step_tokens: int  # of packed sequences, padding excluded
    step_targets: int  # tokens that were learned
    gradient_norm: float | None
    rate_factor: float  # of the peak learning rates
    wall_s: float
    data_wait_s: float  # of this rank, waiting for batches
    flops: float  # of the step, over all ranks

    def speeds(self, device: torch.device, num_ranks: int) -> dict[str, float]:
        """Per second; MFU only where the card's peak is known."""
        wall_s = max(self.wall_s, 1e-9)
        found = {
            "samples_per_s": self.step_samples / wall_s,
            "tokens_per_s": self.step_tokens / wall_s,
            "data_wait_share": self.data_wait_s / wall_s,
            "tflops": self.flops / wall_s / 1e12,
        }
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name)
        if peak is not None:
            found["mfu"] = self.flops / wall_s / (peak * num_ranks)
        return found


class Monitor:
    """Of the main rank; the others' calls do nothing."""

    def __init__(
        self, folder: Path, title: str, *, is_main: bool, device: torch.device, num_ranks: int
    ) -> None:
        self.device, self.num_ranks, self.is_main = device, num_ranks, is_main
        self._stack = contextlib.ExitStack()
        self._writer: Any = None
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._stack.enter_context((folder / LOG_FILE).open("a", encoding="utf-8"))
        self._writer = _tensorboard(folder / "tensorboard")
        if self._writer is not None:
            self._stack.callback(self._writer.close)
        self._progress = _progress_bar()
        self._stack.enter_context(self._progress)
        self._task = self._progress.add_task(title, total=1.0, text="starting")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def log(self, report: StepReport) -> None:
        """One line, one point per curve."""
        if not self.is_main:
            return
        speeds = report.speeds(self.device, self.num_ranks)
        line = {**asdict(report), **speeds, "time_s": time.time()}
        try:
            self._write(report, line, speeds)
        except OSError as error:  # a full disk: the run's checkpoints matter, its log does not
            self.note(f"nvila: step {report.step} is not in the log ({error})")
        mfu = f", MFU {speeds['mfu']:.0%}" if "mfu" in speeds else ""
        text = (
            f"step {report.step}, loss {report.loss:.3f}, {speeds['samples_per_s']:.1f} samples/s, "
            f"{speeds['tokens_per_s']:.0f} tokens/s{mfu}, waits {speeds['data_wait_share']:.0%}"
        )
        self._progress.update(self._task, completed=report.progress, text=text)

    def _write(self, report: StepReport, line: dict[str, Any], speeds: dict[str, float]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._writer is None:
            return
        for name in ("loss", "gradient_norm", "rate_factor"):
            if getattr(report, name) is not None:
                self._writer.add_scalar(name, getattr(report, name), report.step)
        for name, value in speeds.items():
            self._writer.add_scalar(name, value, report.step)

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self.is_main:
            self._progress.console.print(text, highlight=False, markup=False)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The logged steps of a run; a line that a killed run cut short is left out."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def cut_log(folder: Path, step: int) -> None:
    """Forgets what was logged after the checkpoint that a run resumes from."""
    kept = [line for line in read_log(folder) if line["step"] <= step]
    if (folder / LOG_FILE).exists():
        text = "".join(json.dumps(line) + "\n" for line in kept)
        (folder / LOG_FILE).write_text(text, encoding="utf-8")


def _tensorboard(folder: Path) -> Any:
    """A writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _progress_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=Console(file=sys.stderr))

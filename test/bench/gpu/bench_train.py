# SPDX-License-Identifier: Apache-2.0
"""`make bench-train`: training speed and memory, written to docs/benchmarks/train_h100.json.

Rows are processes: they compile side by side and are measured one after another. `--only` picks
rows, `--tables` prints the tables of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from train_tables import tables

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
RESULT = REPOSITORY / "docs" / "benchmarks" / "train_h100.json"
ROWS = (
    "checks",
    "ln_qlora",
    "ln_lora",
    "lora_lora",
    "lora_qlora",
    "decoder_bf16",
    "decoder_fp8_tensor",
    "decoder_fp8_row",
    "lite2b",
    "lite8b",
)


class Row:
    """A row's process; what it prints is read by a thread of its own."""

    def __init__(self, name: str, log: Path | None, options: list[str]) -> None:
        self.name = name
        self.result: dict[str, Any] = {"row": name, "error": "it printed no result"}
        self.is_ready = threading.Event()
        self.log = (log / f"{name}.log").open("w") if log else None
        script = "train_checks.py" if name == "checks" else "train_row.py"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log or subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("READY"):
                self.is_ready.set()
            elif line.startswith("RESULT "):
                self.result = json.loads(line.removeprefix("RESULT "))
            elif self.log:
                self.log.write(line)
        self.is_ready.set()

    def go(self, timeout_s: float) -> dict[str, Any]:
        """Lets it measure; ends it when its time is over."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("GO\n")
            self.process.stdin.flush()
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.result["error"] = f"ended after {timeout_s:.0f} s"
        except BrokenPipeError:
            self.process.wait()  # it failed before it was its turn
        self.reader.join(5)
        return self.result


def environment() -> dict[str, str]:
    """Of every row: the repository on the path, an allocator that does not fragment."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_COMPILE_THREADS": os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "4"),
    }


def machine() -> dict[str, Any]:
    """What the figures depend on; BENCH_COMMIT names the commit where there is no repository."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = (
        os.environ.get("BENCH_COMMIT")
        or subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    )
    return {
        "python": platform.python_version(),
        "commit": commit,
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that compute."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "triton", "torchao", "liger-kernel", "bitsandbytes", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--logs", type=Path, help="folder for what rows print")
    parser.add_argument("--compile-s", type=float, default=300.0, help="at most, for all rows")
    parser.add_argument("--row-s", type=float, default=120.0, help="at most, to measure one")
    parser.add_argument("--eager", action="store_true", help="layers are not compiled")
    parser.add_argument("--cache", type=Path, help="folder of what was compiled before")
    parser.add_argument("--checkpoints", choices=("both", "yes", "no"), help="ways to measure")
    parser.add_argument("--no-loader", action="store_true", help="no waiting for data is measured")
    parser.add_argument(
        "--overlap", action="store_true", help="measure a row while later ones still get ready"
    )
    parser.add_argument("--tables", action="store_true", help="only print an earlier run's tables")
    return parser.parse_args()


def run(arguments: argparse.Namespace, content: dict[str, Any]) -> None:
    """Starts all rows, measures one after another, keeps every result at once."""
    if arguments.logs:
        arguments.logs.mkdir(parents=True, exist_ok=True)
    options = ["--eager"] if arguments.eager else []
    options += ["--cache", str(arguments.cache)] if arguments.cache else []
    options += ["--no-loader"] if arguments.no_loader else []
    options += ["--checkpoints", arguments.checkpoints] if arguments.checkpoints else []
    begin_s = time.monotonic()
    rows = [Row(name, arguments.logs, options) for name in arguments.only.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for row in [] if arguments.overlap else rows:
            row.is_ready.wait(max(0.0, begin_s + arguments.compile_s - time.monotonic()))
        for row in rows:
            row.is_ready.wait(max(0.0, begin_s + arguments.compile_s - time.monotonic()))
            print(f"{time.monotonic() - begin_s:.1f} s: {row.name}", flush=True)
            result = row.go(arguments.row_s)
            key = f"{row.name}_eager" if arguments.eager else row.name
            content["rows"][key] = result | {"machine": machine()}
            print(json.dumps(result), flush=True)
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    finally:
        for row in rows:
            row.process.kill()  # nothing where it has ended


def main() -> None:
    """Runs the rows and prints the tables."""
    arguments = asked()
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": {}}
    if not arguments.tables:
        run(arguments, content)
    print(tables(content["rows"]))


if __name__ == "__main__":
    main()

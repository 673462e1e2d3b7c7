# SPDX-License-Identifier: Apache-2.0
"""All seven stages on the CPU at toy size (`make train-smoke`), killed once in the middle.

Longer than a quick test should be, and part of `make test` all the same: it is the one proof that
the chain from nothing to a model that drives holds together.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nvila_ros.models import weights
from nvila_ros.models.config_files import load_config
from nvila_ros.training.stage_recipe import STAGES

ROOT = Path(__file__).resolve().parents[2]


def nvila(*arguments: str) -> subprocess.Popen:
    """The command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "nvila_ros.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=280)[0]
    assert process.returncode == 0, text
    return text


def test_seven_stages_from_nothing_to_a_model_that_drives(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    chain = ["train", "--all", "toy", "--cpu", "--runs", str(runs)]
    first = nvila(*chain)
    middle = runs / "toy" / "4_image_sft" / "checkpoints" / "step-00000002"
    while not middle.exists() and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (runs / "toy" / "7_dagger" / "model").exists(), "killed too late to prove anything"
    finish(nvila(*chain, "--resume"))
    for stage in STAGES:
        folder = runs / "toy" / stage
        steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").open()]
        assert steps == [1, 2, 3], stage
        assert load_config(folder / "model").num_time_tokens == (0 if stage < "5" else 100)
        assert list((folder / "tensorboard").iterdir())
    final = runs / "toy" / "7_dagger" / "model"
    assert weights.load(final)[0].config.vision.hidden_size == 48
    report = json.loads(finish(nvila("inspect", str(final), "--json")).splitlines()[-1])
    assert report["problem"] is None
    drive = ["simulate", "--seeds", "900000", "--model", str(final), "--max-decisions", "2"]
    assert "success" in finish(nvila(*drive, "--workers", "1", "--json"))

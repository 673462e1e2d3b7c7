# SPDX-License-Identifier: Apache-2.0
"""The whole demo as its user starts it: two nodes over DDS, files written, nothing left running."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from nvila_ros import cli

pytest.importorskip("rclpy")
pytestmark = [pytest.mark.ros, pytest.mark.slow]


def demo(model: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nvila_ros.cli", "demo", "--model", str(model)]
    command += ["--output", str(output), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=170)


def num_node_processes(output: Path) -> int:
    """Processes of nodes whose log lies in this test's folder."""
    count = 0
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            count += str(output) in str(link.readlink())
        except OSError:
            continue
    return count


def test_demo_drives_and_writes_what_it_promises(tmp_path, tiny_folder):
    instruction = "Go to the pink sofa."
    arguments = ("--seed", "900000", "--instruction", instruction, "--timeout-s", "6")
    done = demo(tiny_folder, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert instruction in done.stdout and "m to go" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert isinstance(result["success"], bool) and result["instruction"] == instruction
    assert result["decisions"] and result["decision_latency"]["p50_s"] > 0.0
    assert result["stands_still"]
    assert 0 < result["peak_memory_bytes"] < 2.5e9
    with av.open(str(tmp_path / "episode.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) > 20
    with Image.open(tmp_path / "trajectory.png") as plan:
        assert plan.width > 400
    assert num_node_processes(tmp_path) == 0


def test_demo_says_why_a_checkpoint_cannot_drive(tmp_path, tiny_folder):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = broken / "llm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    done = demo(broken, tmp_path / "out", "--seed", "900000")
    assert done.returncode == cli.EXIT_INPUT
    assert "truncated or corrupt" in done.stderr
    assert num_node_processes(tmp_path) == 0

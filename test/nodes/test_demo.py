# SPDX-License-Identifier: Apache-2.0
"""The whole demo as its user starts it: two nodes over DDS, files written, nothing left running."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import av
import pytest
from PIL import Image

from nvila_ros import cli

pytest.importorskip("rclpy")
pytestmark = [pytest.mark.ros, pytest.mark.slow]


def command(model: Path, output: Path, *arguments: str) -> list[str]:
    words = [sys.executable, "-m", "nvila_ros.cli", "demo", "--model", str(model)]
    return [*words, "--output", str(output), *arguments]


def demo(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=170, env=environment
    )


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
    done = demo(tiny_folder, tmp_path, "--no-dashboard", *arguments)
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


def test_demo_serves_the_dashboard_while_it_drives_and_no_longer(tmp_path, tiny_folder):
    pytest.importorskip("nicegui", reason="no NiceGUI here: needs the extra 'dashboard'")
    words = command(tiny_folder, tmp_path, "--seed", "900000", "--timeout-s", "15")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as running:
        lines = []
        while not (found := re.search(r"http://\S+", (lines or [""])[-1])):
            lines.append(running.stdout.readline())
            assert lines[-1], lines
        with_cookies = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with with_cookies.open(found[0], timeout=30) as answer:
            assert answer.status == 200 and "nicegui" in answer.read().decode().lower()
        rest, _ = running.communicate(timeout=120)
    assert running.returncode == 0 and "result.json" in rest
    assert num_node_processes(tmp_path) == 0


def test_demo_drives_where_nicegui_cannot_be_imported(tmp_path, tiny_folder):
    (tmp_path / "nicegui.py").write_text("raise ImportError('broken on purpose')\n")
    arguments = ("--seed", "900000", "--timeout-s", "10")
    done = demo(tiny_folder, tmp_path / "out", *arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no dashboard, the drive goes on" in done.stdout and "result.json" in done.stdout


def test_demo_says_why_a_checkpoint_cannot_drive(tmp_path, tiny_folder):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = broken / "llm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    done = demo(broken, tmp_path / "out", "--seed", "900000")
    assert done.returncode == cli.EXIT_INPUT
    assert "truncated or corrupt" in done.stderr
    assert num_node_processes(tmp_path) == 0

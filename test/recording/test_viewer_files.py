# SPDX-License-Identifier: Apache-2.0
"""The layouts for Foxglove and RViz: whole, and of topics that the nodes really have."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from nvila_ros import cli

RERUN = shutil.which("rerun")
CONFIG = Path(__file__).resolve().parents[2] / "config"
TOPICS = {
    *("/image/compressed", "/camera_info", "/odom", "/scan", "/cmd_vel", "/instruction"),
    *("/navigator/plan", "/navigator/decision", "/navigator/state", "/diagnostics"),
}


def leaves(layout):
    if isinstance(layout, str):
        return [layout]
    return leaves(layout["first"]) + leaves(layout["second"])


def topics(value):
    if isinstance(value, dict):
        return {name for item in value.items() for part in item for name in topics(part)}
    if isinstance(value, list):
        return {name for part in value for name in topics(part)}
    return {value.split(".")[0]} if isinstance(value, str) and value.startswith("/") else set()


def test_foxglove_layout_has_a_panel_for_each_place_and_knows_our_topics():
    content = json.loads((CONFIG / "foxglove.json").read_text())
    assert sorted(leaves(content["layout"])) == sorted(content["configById"])
    assert topics(content["configById"]) == TOPICS


def test_rviz_configuration_has_our_topics():
    content = yaml.safe_load((CONFIG / "navigator.rviz").read_text())
    displays = content["Visualization Manager"]["Displays"]
    named = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert {f"/{name}" for name in named} <= TOPICS | {"/image"}
    latched = next(d for d in displays if d["Name"] == "Planned motions")
    assert latched["Topic"]["Durability Policy"] == "Transient Local"


def test_view_says_where_a_bag_can_be_looked_at(model_drive, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["nvila", "view", str(model_drive)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output = capsys.readouterr().out
    assert not ended.value.code and "foxglove.json" in output and "rerun-sdk" in output


@pytest.mark.parametrize("display, options", [(":0", []), ("", ["--web-viewer"])])
def test_view_opens_rerun_for_this_machine_alone(
    model_drive, monkeypatch, tmp_path, display, options
):
    """It would listen on every interface; without a screen it serves a page instead of failing."""
    program = tmp_path / "rerun"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/opened\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.argv", ["nvila", "view", str(model_drive)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    words = (tmp_path / "opened").read_text().split()
    assert words == ["--bind", "127.0.0.1", *options, str(model_drive)]


@pytest.mark.skipif(RERUN is None, reason="no rerun here: pip install rerun-sdk (700 MB)")
def test_rerun_reads_every_topic_of_a_recording(model_drive, tmp_path):
    target = tmp_path / "drive.rrd"
    subprocess.run([RERUN, "mcap", "convert", str(model_drive), "-o", str(target)], check=True)
    told = subprocess.run([RERUN, "rrd", "stats", str(target)], capture_output=True, text=True)
    named = {line.split(":")[0] for line in told.stdout.splitlines() if line.startswith("/")}
    recorded = {"/image/compressed", "/odom", "/instruction"}
    assert recorded | {"/navigator/decision", "/navigator/state"} <= named

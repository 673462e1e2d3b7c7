# SPDX-License-Identifier: Apache-2.0
"""The layouts for Foxglove and RViz: whole, and of topics that the nodes really have."""

import json
from pathlib import Path

import pytest
import yaml

from nvila_ros import cli

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


def test_view_opens_rerun_where_it_is_installed(model_drive, monkeypatch, tmp_path):
    program = tmp_path / "rerun"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["nvila", "view", str(model_drive)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert (tmp_path / "opened").read_text().strip() == str(model_drive)

# SPDX-License-Identifier: Apache-2.0
"""The commands on a small bag: one object on stdout, errors by name."""

import json

import pytest

from nvila_ros import cli
from nvila_ros.cli_options import EXIT_INPUT


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["nvila", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended, cli.exit_codes():
        cli.app()
    return ended.value.code or 0


def test_replay_asks_the_shipped_model(model_drive, monkeypatch, capsys):
    assert run(monkeypatch, "replay", model_drive, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_decisions"] == 4 and 0.0 <= result["agreement"] <= 1.0
    assert len(result["decisions"]) == 4 and result["num_frames"] > 20


def test_replay_names_a_bag_that_it_cannot_use(bag, monkeypatch, capsys):
    bag.rest()
    path = bag.close()
    assert run(monkeypatch, "replay", path) == EXIT_INPUT
    assert "--instruction" in capsys.readouterr().err
    assert run(monkeypatch, "replay", path, "--instruction", "Go.") == EXIT_INPUT
    assert "no decisions" in capsys.readouterr().err


def test_from_bag_writes_rows_that_data_check_reads(model_drive, tmp_path, monkeypatch, capsys):
    pytest.importorskip("webdataset")
    arguments = ("from-bag", model_drive, "--output", tmp_path / "rows", "--json")
    assert run(monkeypatch, "data", *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_rows"] == 4 and result["num_broken"] == 0
    assert run(monkeypatch, "data", "check", tmp_path / "rows", "--json") == 0
    assert "4" in capsys.readouterr().out

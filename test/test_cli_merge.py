# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from typer.testing import CliRunner

from nvila_ros import cli
from nvila_ros.errors import CheckpointError
from nvila_ros.training import adapter_files

runner = CliRunner()


def test_merge_passes_its_folders_on_and_lists_what_it_wrote(tmp_path, monkeypatch):
    seen = []

    def merge(adapter, model, out):
        seen.append((adapter.name, model.name))
        (out / "llm").mkdir(parents=True)
        (out / "llm" / "model.safetensors").touch()

    monkeypatch.setattr(adapter_files, "merge", merge)
    out = tmp_path / "out"
    result = runner.invoke(cli.app, ["merge", "adapter", "model", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert seen == [("adapter", "model")]
    assert json.loads(result.stdout)["files"] == [str(out / "llm" / "model.safetensors")]


def test_a_folder_without_an_adapter_is_unusable_input(tmp_path):
    arguments = ["merge", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(CheckpointError, match="nvila train"):
        runner.invoke(cli.app, arguments, catch_exceptions=False)

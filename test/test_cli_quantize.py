# SPDX-License-Identifier: Apache-2.0
"""The command quantize: exit codes, messages and the object on stdout."""

import json
import sys

import pytest
from PIL import Image

from nvila_ros import cli


@pytest.fixture
def nvila(monkeypatch, capsys):
    """Runs `nvila`; returns exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nvila", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    Image.new("RGB", (40, 30), (90, 30, 0)).save(folder / "view.png")
    prompt = {
        "instruction": "Go to the red chair.",
        "frames": [None] * 7 + ["view.png"],
        "answer": "The next action is stop.",
    }
    (folder / "prompts.json").write_text(json.dumps({"format": 1, "prompts": [prompt]}))
    return folder


def test_the_tower_alone(nvila, tiny_folder, prompts, tmp_path):
    out = tmp_path / "quantized"
    options = ("--language", "none", "--calibration", prompts, "--out", out)
    code, stdout, _ = nvila("quantize", tiny_folder, *options, "--json")
    report = json.loads(stdout)
    assert code == 0 and (out / "quantization.json").exists()
    assert report["settings"]["num_prompts"] == 1
    assert len(report["vision_tower"]) == 1 and "llm" not in report


def test_a_table_per_part(nvila, tiny_folder, prompts, tmp_path):
    out = tmp_path / "quantized"
    options = ("--language", "none", "--calibration", prompts, "--out", out)
    code, stdout, stderr = nvila("quantize", tiny_folder, *options)
    assert code == 0 and "tower, int8" in stdout and "done" in stderr


def test_a_narrow_decoder_is_refused_by_the_layers_name(nvila, tiny_folder, prompts, tmp_path):
    options = ("--calibration", prompts, "--out", tmp_path / "quantized")
    code, _, stderr = nvila("quantize", tiny_folder, *options)
    assert code == 3 and "q_proj has 16 inputs" in stderr and "--language none" in stderr


def test_an_unknown_scheme_is_wrong_usage(nvila, tiny_folder, tmp_path):
    code, _, stderr = nvila(
        "quantize", tiny_folder, "--vision", "w4a4", "--out", tmp_path / "quantized"
    )
    assert code == 2 and "w8a8" in stderr

# SPDX-License-Identifier: Apache-2.0
"""Commands export and bench vision, as typed."""

import json

import pytest
from typer.testing import CliRunner

from nvila_ros.cli import app
from nvila_ros.cli_export import DEFAULT_FLOAT_LAYERS
from nvila_ros.cli_options import NANO_FOLDER
from nvila_ros.errors import ConfigError
from nvila_ros.models.fingerprint import vision_fingerprint

runner = CliRunner()


def run(*words):
    """The object that a command printed; its error is raised, as `main` would tell it."""
    result = runner.invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_tower_is_exported_and_checked(tmp_path):
    pytest.importorskip("onnx", reason="needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    report = run("export", str(NANO_FOLDER), "--precision", "fp32", "--out", str(tmp_path))
    assert report["fingerprint"] == vision_fingerprint(NANO_FOLDER)
    assert [file["path"] for file in report["files"]] == [str(tmp_path / "vision_fp32.onnx")]
    assert report["relative_error"] < 1e-5


def test_the_decoder_is_exported(tmp_path):
    report = run("export", str(NANO_FOLDER), "--part", "language", "--out", str(tmp_path / "text"))
    assert report["architecture"] == "Qwen2ForCausalLM"
    assert (tmp_path / "text" / "config.json").is_file()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--part", "language"], "needs --out"),
        (["--frames", "0,8"], "frames is '0,8'"),
        (["--frames", "many"], "frames is 'many'"),
        (["--engine", "tensorrt"], "pip install tensorrt"),
        (["--precision", "fp16", "--float-layers", "fc2"], "is for --precision int8"),
        (["--precision", "fp16", "--float-type", "fp32"], "--float-type is for --precision int8"),
        (["--precision", "int8", "--float-layers", "9.fc2"], "of one layer of 0 to 6"),
    ],
)
def test_what_cannot_be_exported_is_said_before_the_work(words, said):
    with pytest.raises(ConfigError, match=said):
        run("export", str(NANO_FOLDER), *words)


def test_the_benchmark_of_the_tower_says_who_was_not_run():
    result = run("bench", "vision", str(NANO_FOLDER), "--frames", "1", "--device", "cpu")
    assert result["milliseconds"]["torch"]["1"] > 0 and result["milliseconds"]["floor"]["1"] > 0
    assert set(result["not_run"]) == {"tensorrt", "onnxruntime"}


@pytest.mark.slow
def test_the_tower_in_int8_is_near_the_network_and_says_what_stayed_in_floats(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    words = ("export", str(NANO_FOLDER), "--precision", "int8", "--calibration", "700000:700002")
    report = run(*words, "--out", str(tmp_path))
    assert report["relative_error"] < 2e-2
    stored = onnx.load(tmp_path / "vision_int8_fp32.onnx")
    properties = {entry.key: entry.value for entry in stored.metadata_props}
    assert properties["nvila_float_layers"] == DEFAULT_FLOAT_LAYERS
    kinds = [node.op_type for node in stored.graph.node]
    assert kinds.count("QuantizeLinear") == 4 * 7 - len(DEFAULT_FLOAT_LAYERS.split(","))

# SPDX-License-Identifier: Apache-2.0
"""Exported towers in an engine's place: which is chosen, what is refused, what files say."""

import io
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nvila_ros import models
from nvila_ros.errors import ConfigError, ExportError
from nvila_ros.evaluation import vision_bench
from nvila_ros.models import vision_engine
from nvila_ros.models.engine_file import FOLDER
from nvila_ros.models.export import export_onnx, load_vision
from nvila_ros.models.fingerprint import vision_fingerprint
from nvila_ros.models.runtime_backend import load_engine
from nvila_ros.models.vision_engine import WithVision
from nvila_ros.policy import NavigationPolicy

NANO_FOLDER = Path(models.__file__).parent / "nano"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NVILA_ROS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The small checkpoint with a float32 graph where backends look for it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported") / "nano"
    shutil.copytree(NANO_FOLDER, folder)
    export_onnx(
        load_vision(folder),
        folder / FOLDER,
        fingerprint=vision_fingerprint(folder),
        precision="fp32",
        float_type="fp32",
        frames=(1, 8),
    )
    return folder


def test_onnxruntime_computes_the_features_and_the_engine_all_else(exported):
    engine, tokenizer = load_engine(exported, vision_backend="onnxruntime")
    plain, _ = load_engine(exported, vision_backend="torch")
    assert isinstance(engine, WithVision) and engine.vision.name == "onnxruntime"
    frames = torch.rand(2, 3, 192, 192) * 2 - 1
    features = engine.encode_frames(frames)
    torch.testing.assert_close(features, plain.encode_frames(frames), rtol=1e-4, atol=1e-4)
    prompt = tokenizer.encode("stop")
    assert engine.generate_greedy(prompt, max_new_tokens=3) == plain.generate_greedy(
        prompt, max_new_tokens=3
    )


@pytest.mark.parametrize("slow", ["torch", "onnxruntime"])
def test_auto_takes_the_fastest_measures_once_and_remembers(exported, monkeypatch, cache, slow):
    calls = []

    def timed(run, pixels, count=7):
        is_own = getattr(run, "__name__", "") == "encode_frames"
        calls.append(is_own)
        return 9.0 if is_own == (slow == "torch") else 1.0

    monkeypatch.setattr(vision_engine, "median_ms", timed)
    for _ in range(2):
        engine, _ = load_engine(exported, vision_backend="auto")
        assert isinstance(engine, WithVision) == (slow == "torch")
    assert len(calls) == 2, "measured once for each"
    assert len(json.loads((cache / "vision_backend.json").read_text())) == 1


def test_the_benchmark_has_a_row_for_the_engines_own_tower_beside_the_exported_one(
    exported, monkeypatch
):
    monkeypatch.setattr(vision_engine, "fastest", lambda *_: "onnxruntime")
    seen = []
    monkeypatch.setattr(vision_bench, "median_ms", lambda run, *_: seen.append(run) or 1.0)
    result = vision_bench.measure(exported, [1], "cpu")
    assert set(result["milliseconds"]) == {"torch", "onnxruntime", "floor"}
    owners = {type(getattr(run, "__self__", None)).__name__ for run in seen}
    assert {"TorchEngine", "WithVision"} <= owners
    assert "GPU" in result["not_run"]["tensorrt"]
    assert result["precisions"] == dict.fromkeys(("torch", "onnxruntime", "floor"), "fp32")
    shown = io.StringIO()
    Console(file=shown, width=160).print(vision_bench.table(result))
    rows = shown.getvalue().splitlines()
    assert any(row.split()[1:4:2] == ["onnxruntime", "fp32"] for row in rows if "onnx" in row)


def test_auto_without_an_export_is_the_engines_own_tower():
    engine, _ = load_engine(NANO_FOLDER)
    assert not isinstance(engine, WithVision)


def test_auto_says_what_it_cannot_use_and_goes_on(exported, tmp_path, caplog):
    folder = tmp_path / "changed"
    shutil.copytree(exported, folder)
    graph = folder / FOLDER / "vision_fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        policy = NavigationPolicy.load(folder)
    (notice,) = policy.notices
    assert "onnxruntime is not used" in notice and "nvila export" in notice
    assert notice in caplog.text
    assert policy.notices != NavigationPolicy.load(NANO_FOLDER).notices == ()
    with pytest.raises(ExportError, match="cannot use"):
        load_engine(folder, vision_backend="onnxruntime")


def test_auto_goes_on_without_a_backend_that_fails_when_it_is_tried(exported, tmp_path, cache):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "changed"
    shutil.copytree(exported, folder)
    graph = folder / FOLDER / "vision_fp32.onnx"
    stored = onnx.load(graph)
    stored.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8  # one frame is tried
    onnx.save(stored, graph)
    policy = NavigationPolicy.load(folder)
    (notice,) = policy.notices
    assert "onnxruntime is not used: ONNX Runtime could not run" in notice and "8" in notice
    assert not (cache / "vision_backend.json").exists(), "it may be repaired"


def test_what_cannot_be_had_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"'fast'; one of auto, kernels"):
        load_engine(NANO_FOLDER, vision_backend="fast")
    with pytest.raises(ConfigError, match="language part runs on torch"):
        load_engine(NANO_FOLDER, vision_backend="kernels")
    with pytest.raises(ConfigError, match="CUDA GPU"):
        load_engine(NANO_FOLDER, vision_backend="tensorrt")
    with pytest.raises(ConfigError, match=r"holds no graph; make one: nvila export"):
        load_engine(NANO_FOLDER, vision_backend="onnxruntime")


@pytest.mark.parametrize(
    "gpu, said",
    [
        ("sm89", r"holds no engine; build one: .* --engine tensorrt-rtx --gpu sm89"),
        ("sm90", r"TensorRT-RTX does not run on sm90\); .* --engine tensorrt --gpu current"),
    ],
)
def test_a_card_without_an_engine_is_told_how_to_have_one(tmp_path, monkeypatch, gpu, said):
    monkeypatch.setattr(vision_engine, "gpu_name", lambda device: gpu)
    monkeypatch.setattr(vision_engine, "vision_fingerprint", lambda folder: "a" * 16)
    with pytest.raises(ConfigError, match=said):
        vision_engine._open("tensorrt", tmp_path, torch.device("cuda"))


def test_a_measurement_file_that_cannot_be_read_is_made_anew(exported, cache):
    cache.mkdir()
    (cache / "vision_backend.json").write_text("{broken")
    load_engine(exported, vision_backend="auto")
    assert len(json.loads((cache / "vision_backend.json").read_text())) == 1

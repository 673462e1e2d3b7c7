# SPDX-License-Identifier: Apache-2.0
"""Exported towers in an engine's place: which is chosen, what is refused, what files say."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from nvila_ros import models
from nvila_ros.errors import ConfigError, ExportError
from nvila_ros.evaluation import vision_bench
from nvila_ros.models import vision_engine
from nvila_ros.models.engine_file import (
    FOLDER,
    Description,
    read_description,
    read_engine,
    write_engine,
)
from nvila_ros.models.export import export_onnx, load_vision
from nvila_ros.models.export_language import export_language
from nvila_ros.models.fingerprint import vision_fingerprint
from nvila_ros.models.runtime_backend import load_engine
from nvila_ros.models.vision_engine import WithVision
from nvila_ros.policy import NavigationPolicy

NANO_FOLDER = Path(models.__file__).parent / "nano"
EXPECTED = {
    "fingerprint": "a" * 16,
    "library": "tensorrt_rtx",
    "version": "1.7",
    "gpu": "sm89",
    "model": "robot/model",
}


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


def describe(**changes):
    fields = {
        "library": "tensorrt_rtx",
        "version": "1.7",
        "fingerprint": "a" * 16,
        "precision": "int8",
        "gpus": ("sm86", "sm89"),
        "max_frames": 8,
    }
    return Description(**{**fields, **changes})


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


def test_an_engine_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "vision.engine"
    written = write_engine(path, describe(), b"engine bytes")
    assert read_description(path) == written
    assert read_engine(path, **EXPECTED) == (written, b"engine bytes")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"fingerprint": "b" * 16}, "checkpoint is bbbb"),
        ({"version": "1.6"}, r"version of it is 1\.6, here it is 1\.7"),
        ({"library": "tensorrt"}, "library is tensorrt, here it is tensorrt_rtx"),
        ({"gpus": ("sm120",)}, r"built for sm120, this GPU is sm89; .* --gpu sm89"),
    ],
)
def test_an_engine_for_something_else_is_refused_with_the_command(tmp_path, changes, said):
    path = tmp_path / "vision.engine"
    write_engine(path, describe(**changes), b"engine bytes")
    with pytest.raises(ExportError, match=said) as caught:
        read_engine(path, **EXPECTED)
    assert "nvila export robot/model --part vision --precision int8 --engine" in str(caught.value)


def test_a_truncated_damaged_or_foreign_engine_file_is_refused(tmp_path):
    path = tmp_path / "vision.engine"
    write_engine(path, describe(), b"engine bytes")
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(ExportError, match="cut short: 9 of 12 bytes"):
        read_engine(path, **EXPECTED)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(ExportError, match="damaged"):
        read_engine(path, **EXPECTED)
    for foreign in (b"", b"ftrt" * 100, content[:40]):
        path.write_bytes(foreign)
        with pytest.raises(ExportError, match=r"no engine file of nvila_ros"):
            read_engine(path, **EXPECTED)
    with pytest.raises(ExportError, match="nvila export"):
        read_engine(tmp_path / "none.engine", **EXPECTED)


def test_an_engine_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ExportError, match="No space left"):
        write_engine(tmp_path / "vision.engine", describe(), b"engine bytes")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_an_engine_larger_than_the_disk_takes_leaves_nothing(tmp_path, largest_file):
    largest_file(10_000)
    with pytest.raises(ExportError, match=r"cannot write .*: File too large; it needs 1 MB"):
        write_engine(tmp_path / "vision.engine", describe(), bytes(1_000_000))
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_the_command_that_rebuilds_names_all_that_the_engine_was_built_with():
    command = describe(float_layers="0.fc1,0.fc2", max_frames=16).command("robot/model")
    words = command.split()[2:]
    assert words[0] == "robot/model"
    assert dict(zip(words[1::2], words[2::2], strict=True)) == {
        "--part": "vision",
        "--precision": "int8",
        "--engine": "tensorrt-rtx",
        "--gpu": "sm86,sm89",
        "--float-layers": "0.fc1,0.fc2",
        "--frames": "1,16",
    }


def test_the_decoder_is_a_checkpoint_that_transformers_reads(tmp_path):
    transformers = pytest.importorskip("transformers")
    report = export_language(NANO_FOLDER, tmp_path / "text")
    assert report["architecture"] == "Qwen2ForCausalLM" and report["num_bytes"] > 1e6
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", output_loading_info=True
    )
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with pytest.raises(ExportError, match="new or empty"):
        export_language(NANO_FOLDER, tmp_path / "text")


def test_a_decoder_that_others_do_not_know_is_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(NANO_FOLDER, copy)
    path = copy / "llm" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "other"}))
    with pytest.raises(ExportError, match=r"model_type 'other'; vLLM"):
        export_language(copy, tmp_path / "text")
    assert not (tmp_path / "text").exists()

# SPDX-License-Identifier: Apache-2.0
"""`nvila quantize` on a small network: what it refuses, and disks and memory that are full."""

import dataclasses
import errno

import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.training.quantize import autoawq_backend, recordings, run, workplace
from nvila_ros.training.quantize.run import quantize


def test_a_quantized_checkpoint_is_refused(quantized, prompts, tmp_path, job):
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize(job(quantized[0], prompts, tmp_path / "model"))


def test_a_width_without_whole_groups_is_named(prompts, tmp_path, make_checkpoint, job):
    odd = make_checkpoint(tmp_path / "odd", intermediate_size=192)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down_proj has 192 inputs"):
        quantize(job(odd, prompts, tmp_path / "model"))
    quantize(job(odd, prompts, tmp_path / "model", language="none"))


def test_a_target_with_content_is_refused(checkpoint, prompts, tmp_path, job):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        quantize(job(checkpoint, prompts, tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vision": "w4a4"}, "expected one of w8a8, none"),
        ({"language": "int3"}, "expected one of w4a16, none"),
        ({"backend": "magic"}, "expected one of own, autoawq"),
        ({"vision": "none", "language": "none"}, "neither"),
    ],
)
def test_unknown_schemes_are_refused(checkpoint, prompts, tmp_path, changes, message, job):
    with pytest.raises(ConfigError, match=message):
        job(checkpoint, prompts, tmp_path, **changes)


@pytest.mark.parametrize("device", ["banana", "cuda:17"])
def test_a_device_that_is_not_there_is_refused_first(checkpoint, prompts, tmp_path, device, job):
    with pytest.raises(ConfigError, match="cpu"):
        quantize(job(checkpoint, prompts, tmp_path / "model", device=device))
    assert not list(tmp_path.iterdir())


def test_auto_is_the_device_of_this_machine(checkpoint, prompts, tmp_path, job):
    found = {"cpu": run.plan(job(checkpoint, prompts, tmp_path))["device"]}
    found["auto"] = run.plan(job(checkpoint, prompts, tmp_path, device="auto"))["device"]
    assert found == {"cpu": "cpu", "auto": "cuda" if torch.cuda.is_available() else "cpu"}


def test_too_little_memory_says_what_to_do_and_the_run_goes_on(
    monkeypatch, checkpoint, prompts, tmp_path, job
):
    target = tmp_path / "model"

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no")

    with monkeypatch.context() as patch:
        patch.setattr(run.DecoderStage, "run", full)
        with pytest.raises(ConfigError, match="run the same command again"):
            quantize(job(checkpoint, prompts, target))
    quantize(job(checkpoint, prompts, target))
    assert (target / "quantization.json").exists()


def test_a_missing_autoawq_says_how_to_install_it(monkeypatch, checkpoint, prompts, tmp_path, job):
    monkeypatch.setattr(autoawq_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps autoawq"):
        quantize(job(checkpoint, prompts, tmp_path / "model", backend="autoawq"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("nowhere", "does not exist"),
        ("900100:900300", "overlaps the evaluation"),
        ("7:7", "expected 1 to"),
        ("5:x", "does not exist"),
    ],
)
def test_unusable_calibration_is_refused(checkpoint, tmp_path, text, message, job):
    with pytest.raises(ConfigError, match=message):
        quantize(job(checkpoint, text, tmp_path / "model"))


def test_a_folder_that_lost_a_picture_is_refused(checkpoint, prompts, tmp_path, job):
    (tmp_path / "few").mkdir()
    text = (prompts / recordings.PROMPTS_FILE).read_text()
    (tmp_path / "few" / recordings.PROMPTS_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"lacks the picture 0\.png"):
        quantize(job(checkpoint, tmp_path / "few", tmp_path / "model"))


def test_a_full_disk_is_told_and_the_run_goes_on(
    monkeypatch, checkpoint, prompts, quantized, tmp_path, job, contents
):
    def full(path, num_bytes):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(workplace, "reserve", full)
        with pytest.raises(ConfigError, match="is full; free some space"):
            quantize(job(checkpoint, prompts, tmp_path / "model"))
    quantize(job(checkpoint, prompts, tmp_path / "model"))
    assert contents(tmp_path / "model") == contents(quantized[0])


def test_too_little_space_is_seen_before_the_work(monkeypatch, checkpoint, prompts, tmp_path, job):
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: usage(1000))
    with pytest.raises(ConfigError, match="are free"):
        quantize(job(checkpoint, prompts, tmp_path / "model"))

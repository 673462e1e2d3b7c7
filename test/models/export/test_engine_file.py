# SPDX-License-Identifier: Apache-2.0
"""Engine files: what they say of themselves, what is refused, and what auto does then."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nvila_ros.errors import ExportError, NvilaError
from nvila_ros.models import tensorrt_engine, vision_engine
from nvila_ros.models.engine_file import (
    FOLDER,
    Description,
    read_description,
    read_engine,
    write_engine,
)
from nvila_ros.models.vision_engine import with_vision_backend

EXPECTED = {
    "fingerprint": "a" * 16,
    "library": "tensorrt_rtx",
    "version": "1.7",
    "gpu": "sm89",
    "model": "robot/model",
}


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


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"gpus": ("sm120",)}, "built for sm120, this GPU is sm89"),
        ({"version": "0.1"}, "version of it is 0.1"),
        ({"fingerprint": "b" * 16}, "checkpoint is bbbb"),
        ({"cut": 5}, "cut short: 7 of 12 bytes"),
        ({"library": "tensorrt"}, "tensorrt cannot be imported"),
        ({}, "tensorrt_rtx refuses"),  # twelve bytes that are no engine
    ],
)
def test_auto_on_a_gpu_goes_on_without_an_engine_that_does_not_fit(
    tmp_path, monkeypatch, changes, said
):
    version = pytest.importorskip("tensorrt_rtx").__version__
    for module in (vision_engine, tensorrt_engine):
        monkeypatch.setattr(module, "gpu_name", lambda device=None: "sm89")
    monkeypatch.setattr(vision_engine, "vision_fingerprint", lambda folder: "a" * 16)
    changes = dict(changes)
    num_cut = changes.pop("cut", 0)
    path = tmp_path / FOLDER / "vision.engine"
    write_engine(path, describe(**{"version": version, **changes}), b"engine bytes")
    path.write_bytes(path.read_bytes()[: path.stat().st_size - num_cut])
    own = SimpleNamespace(name="kernels", device=torch.device("cuda"))
    notices = []
    assert with_vision_backend(own, tmp_path, "auto", notices.append) is own
    (notice,) = notices
    assert "vision backend tensorrt is not used" in notice and said in notice
    with pytest.raises(NvilaError, match=said):
        with_vision_backend(own, tmp_path, "tensorrt")


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

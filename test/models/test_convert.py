# SPDX-License-Identifier: Apache-2.0
"""Checkpoints written again load identically; pickles become safetensors and run no code."""

import errno
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.convert import convert
from nvila_ros.models.writing import PartWriter


@pytest.fixture
def source(tiny_model, tokenizer, tmp_path):
    weights.save(tmp_path / "source", tiny_model, tokenizer, torch.bfloat16)
    return tmp_path / "source"


def states(folder):
    model, _ = weights.load(folder, dtype=torch.float32)
    return model.config, model.state_dict()


def assert_loads_identically(first, second):
    (config, state), (other_config, other_state) = states(first), states(second)
    assert config == other_config and state.keys() == other_state.keys()
    assert all(torch.equal(state[key], other_state[key]) for key in state)


def to_pickles(folder, *, shards=1, wrap=lambda tensors: tensors):
    """Replace a part's safetensors by pickles."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    if shards == 1:
        torch.save(wrap(tensors), folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number}.bin"
        keys = names[number::shards]
        torch.save({key: tensors[key] for key in keys}, folder / file)
        weight_map |= dict.fromkeys(keys, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def stored_dtypes(folder):
    files = [folder / part / "model.safetensors" for part in weights.PARTS]
    return {tensor.dtype for path in files for tensor in load_file(path).values()}


def test_saved_again_it_loads_identically_in_its_own_precision(source, tmp_path):
    target = convert(source, tmp_path / "new" / "target")
    assert_loads_identically(source, target)
    assert stored_dtypes(target) == {torch.bfloat16}
    for part in weights.PARTS:
        first, second = (folder / part / "model.safetensors" for folder in (source, target))
        assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_another_precision_can_be_asked_for(source, tmp_path):
    assert stored_dtypes(convert(source, tmp_path / "t", torch.float16)) == {torch.float16}


def test_parts_of_unlike_precision_become_float32(source, tmp_path, tiny_model, tokenizer):
    weights.save(tmp_path / "other", tiny_model, tokenizer, torch.float16)
    (tmp_path / "other" / "llm").rename(tmp_path / "half")
    (source / "llm").rename(tmp_path / "other" / "llm")
    assert stored_dtypes(convert(tmp_path / "other", tmp_path / "target")) == {torch.float32}


def test_pickles_become_safetensors(source, tmp_path):
    untouched = convert(source, tmp_path / "untouched")
    to_pickles(source / "llm", shards=2)
    to_pickles(source / "vision_tower", wrap=lambda tensors: {"state_dict": tensors})
    to_pickles(source / "mm_projector")
    torch.save({"step": 5}, source / "llm" / "training_args.bin")
    target = convert(source, tmp_path / "target")
    assert_loads_identically(untouched, target)
    assert not list(target.rglob("*.bin"))
    assert sorted(path.name for path in target.rglob("model*")) == ["model.safetensors"] * 3


def test_tensors_that_share_memory_are_written(source, tmp_path):
    def share(tensors):
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
        pieces = flat.split([tensor.numel() for tensor in tensors.values()])
        return {
            key: piece.view(tensors[key].shape) for key, piece in zip(tensors, pieces, strict=True)
        }

    untouched = convert(source, tmp_path / "untouched")
    to_pickles(source / "mm_projector", wrap=share)
    assert_loads_identically(untouched, convert(source, tmp_path / "target"))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_does_not_run(source, tmp_path):
    (source / "llm" / "model.safetensors").unlink()
    torch.save({"weight": Malicious(tmp_path / "owned")}, source / "llm" / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt holds more than weights"):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "owned").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("content", "message"),
    [([torch.zeros(2)], "no dictionary"), ({"epoch": 3}, "epoch is no tensor"), ({}, "no dict")],
)
def test_a_pickle_of_something_else_is_named(source, tmp_path, content, message):
    (source / "llm" / "model.safetensors").unlink()
    torch.save(content, source / "llm" / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "target")


def test_a_truncated_pickle_is_named(source, tmp_path):
    to_pickles(source / "llm")
    path = source / "llm" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        convert(source, tmp_path / "target")


def test_two_checkpoints_in_one_folder_are_refused(source, tmp_path):
    to_pickles(source / "llm")
    content = (source / "llm" / "pytorch_model.bin").read_bytes()
    (source / "llm" / "second.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="leave one"):
        convert(source, tmp_path / "target")


def test_nothing_is_overwritten(source, tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, source)
    with pytest.raises(CheckpointError, match="no folder"):
        convert(tmp_path / "absent", tmp_path / "target")
    (tmp_path / "empty").mkdir()
    assert_loads_identically(source, convert(source, tmp_path / "empty"))


def test_sharded_output_loads_identically_also_for_hugging_face(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    target = convert(source, tmp_path / "target", shard_bytes=5000)
    shards = sorted(path.name for path in (target / "llm").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert_loads_identically(source, target)
    for loader, part in (
        (transformers.Qwen2ForCausalLM, "llm"),
        (transformers.SiglipVisionModel, "vision_tower"),
    ):
        network, report = loader.from_pretrained(
            target / part, dtype=torch.bfloat16, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert not report["mismatched_keys"]
        stored = {}
        for path in (target / part).glob("*.safetensors"):
            stored |= load_file(path)
        for key, tensor in network.state_dict().items():
            key = key if part == "llm" or key in stored else f"vision_model.{key}"
            assert torch.equal(tensor, stored[key])


def test_sharded_again_as_one_file_leaves_no_shard_behind(source, tmp_path, tiny_model, tokenizer):
    target = convert(source, tmp_path / "target", shard_bytes=5000)
    weights.save(target, tiny_model, tokenizer, torch.bfloat16)
    assert [path.name for path in (target / "llm").glob("model*")] == ["model.safetensors"]
    assert_loads_identically(source, target)


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_disk_that_is_full_is_noticed_at_once_and_nothing_is_left(source, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*GB.*are free.*make room"):
        convert(source, tmp_path / "target")
    assert left_behind(tmp_path) == ["source"]


def test_a_disk_that_fails_in_the_middle_leaves_nothing(source, tmp_path, monkeypatch):
    real, calls = os.pwrite, []

    def fail_later(*arguments):
        calls.append(arguments)
        if len(calls) > 30:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", fail_later)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be written \(Input/out"):
        convert(source, tmp_path / "target")
    assert left_behind(tmp_path) == ["source"]


def test_a_disk_with_too_little_room_is_refused_before_writing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(CheckpointError, match=r"target needs .* GB, 0\.00 GB are free on its disk"):
        convert(source, tmp_path / "target")
    assert left_behind(tmp_path) == ["source"]


def test_being_stopped_leaves_nothing_that_looks_complete(source, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PartWriter, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "target")
    assert left_behind(tmp_path) == ["source"]


def test_a_limit_on_file_sizes_is_a_full_disk_for_real(source, tmp_path):
    program = (
        "import resource, sys; from nvila_ros.models.convert import convert; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); convert(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "target")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "CheckpointError" in result.stderr and "File too large" in result.stderr
    assert left_behind(tmp_path) == ["source"]


@pytest.mark.parametrize("is_old", [False, True])
def test_pickles_of_every_age_become_safetensors(source, tmp_path, is_old):
    untouched = convert(source, tmp_path / "untouched")
    path = source / "llm" / "model.safetensors"
    torch.save(
        load_file(path), source / "llm" / "model.pth", _use_new_zipfile_serialization=not is_old
    )
    path.unlink()
    assert_loads_identically(untouched, convert(source, tmp_path / "target"))


def test_an_index_of_pickles_is_held_to_its_word(source, tmp_path):
    to_pickles(source / "llm", shards=2)
    index = source / "llm" / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "pytorch_model-0.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"pytorch_model-0\.bin has no model\.extra\.weight"):
        convert(source, tmp_path / "target")

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints written again load identically; pickles become safetensors and run no code."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.convert import convert, stored_dtype


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


def test_saved_again_it_loads_identically_in_its_own_precision(source, tmp_path):
    target = convert(source, tmp_path / "new" / "target")
    assert_loads_identically(source, target)
    assert stored_dtype(target) == torch.bfloat16
    for part in weights.PARTS:
        first, second = (folder / part / "model.safetensors" for folder in (source, target))
        assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_another_precision_can_be_asked_for(source, tmp_path):
    assert stored_dtype(convert(source, tmp_path / "t", torch.float16)) == torch.float16


def test_parts_of_unlike_precision_become_float32(source, tmp_path, tiny_model, tokenizer):
    weights.save(tmp_path / "other", tiny_model, tokenizer, torch.float16)
    (tmp_path / "other" / "llm").rename(tmp_path / "half")
    (source / "llm").rename(tmp_path / "other" / "llm")
    assert stored_dtype(tmp_path / "other") == torch.float32


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

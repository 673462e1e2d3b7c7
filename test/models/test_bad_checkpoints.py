# SPDX-License-Identifier: Apache-2.0
"""Folders that cannot be loaded: what is wrong is named before a weight is read."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.mapping import MappedFile

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path):
    weights.save(tmp_path / "saved", tiny_model, tokenizer)
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def no_weight_is_read(monkeypatch):
    """Whatever is wrong has to be found in names, headers and configs."""

    def refuse(self, name):
        raise AssertionError(f"{name} was read from a broken checkpoint")

    monkeypatch.setattr(MappedFile, "view", refuse)


def message_of(folder):
    with pytest.raises(CheckpointError) as failure:
        weights.load(folder)
    return str(failure.value)


def shard(folder, *, repeat=(), leave_out=()):
    """The decoder as two numbered files and an index that promises every tensor."""
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names, weight_map = sorted(tensors), {}
    for number, keys in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        weight_map |= dict.fromkeys(keys, file)
        kept = [key for key in (*keys, *repeat) if key not in leave_out]
        save_file({key: tensors[key] for key in kept}, folder / "llm" / file)
    (folder / "llm" / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(path, **changes):
    tensors = load_file(path)
    save_file({**tensors, **changes}, path)


def test_a_missing_shard(folder):
    shard(folder)
    (folder / "llm" / "model-00002-of-00002.safetensors").unlink()
    assert re.search(r"llm: 1 of 2 shards .* model-00002-of-00002.*download", message_of(folder))


def test_a_missing_shard_without_an_index(folder):
    shard(folder)
    (folder / "llm" / INDEX).unlink()
    (folder / "llm" / "model-00001-of-00002.safetensors").unlink()
    assert re.search(r"llm has 1 shards, number 1 is missing; download it", message_of(folder))


def test_two_checkpoints_in_one_folder(folder):
    path = folder / "llm" / "model.safetensors"
    path.rename(path.with_name("first.safetensors"))
    (folder / "llm" / "second.safetensors").write_bytes(b"")
    assert "first.safetensors and second.safetensors; leave one" in message_of(folder)


def test_an_index_that_promises_what_its_shard_lacks(folder):
    shard(folder, leave_out=["model.norm.weight"])
    message = message_of(folder)
    assert re.search(r"-of-00002\.safetensors has no model\.norm\.weight, which the", message)
    assert "download this file and the index again" in message


def test_one_tensor_in_two_shards(folder):
    shard(folder, repeat=["model.norm.weight"])
    assert re.search(
        r"00002-of-00002\.safetensors: model\.norm\.weight is also in model-00001",
        message_of(folder),
    )


@pytest.mark.parametrize("file", ["../other.safetensors", "/tmp/other.safetensors"])
def test_an_index_that_points_elsewhere(folder, file):
    shard(folder)
    (folder / "llm" / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    assert f"{INDEX} names {file!r}; shards are files beside the index" in message_of(folder)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_of_nothing(folder, content):
    shard(folder)
    (folder / "llm" / INDEX).write_text(json.dumps(content))
    assert f"{INDEX} has no weight_map" in message_of(folder)


@pytest.mark.parametrize("keep", [0, 4, 500, -100])
def test_a_truncated_file(folder, keep):
    path = folder / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = message_of(folder)
    assert f"{path} is truncated or corrupt" in message and "download it again" in message


def test_a_pointer_of_git_lfs(folder):
    path = folder / "llm" / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5000\n")
    assert re.search(r"is a git-lfs pointer of \d+ bytes.*git lfs pull", message_of(folder))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")],
)
def test_a_tensor_of_a_wrong_dtype(folder, dtype, name):
    path = folder / "llm" / "model.safetensors"
    change_tensors(path, **{"model.norm.weight": torch.zeros(32).to(dtype)})
    message = message_of(folder)
    assert f"{path}: model.norm.weight is stored as {name}, one of F16, BF16, F32" in message
    assert "quantization_config" in message


def test_a_tensor_of_another_shape(folder):
    path = folder / "vision_tower" / "model.safetensors"
    key = "vision_model.post_layernorm.bias"
    change_tensors(path, **{key: torch.zeros(5)})
    message = message_of(folder)
    assert f"{path}: {key} has shape (5,), config.json asks for (24,)" in message


def test_missing_and_unexpected_tensors_are_named_together(folder):
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, path)
    message = message_of(folder)
    assert "llm does not fit its config.json: missing: model.norm.weight; " in message
    assert "not expected: model.extra.weight; (in model.safetensors)" in message


def test_int4_weights_without_a_word_about_them(folder):
    path = folder / "llm" / "model.safetensors"
    key = "model.layers.0.mlp.up_proj.qweight"
    change_tensors(path, **{key: torch.zeros(4, 4, dtype=torch.int32)})
    assert "int4 weights and config.json has no quantization_config" in message_of(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"model_type": "qwen2_5_vl"}, "'qwen2_5_vl'; one of 'llava_llama', 'vila'"),
        ("config.json", {"model_type": "qwen2"}, "one part of a checkpoint; point at the folder"),
        ("llm/config.json", {"model_type": "mamba"}, "model_type is 'mamba'; 'qwen2' or 'llama'"),
        ("llm/config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
        ("llm/config.json", {"num_attention_heads": 3}, "cannot share"),
        ("vision_tower/config.json", {"model_type": "clip"}, "'siglip_vision_model' is supported"),
        ("mm_projector/config.json", {"mm_projector_type": "linear"}, "'linear'; one of mlp_"),
    ],
)
def test_a_config_of_something_else(folder, name, changes, message):
    edit_json(folder / name, **changes)
    found = message_of(folder)
    assert message in found and "config.json" in found


def test_a_config_that_is_no_object(folder):
    (folder / "llm" / "config.json").write_text("[]")
    assert "llm/config.json holds no JSON object" in message_of(folder)


def test_a_tokenizer_without_the_templates_tokens(folder):
    path = folder / "llm" / "tokenizer.json"
    text = path.read_text().replace("<|im_start|>", "<|i_start|>")
    path.write_text(text)
    settings = folder / "llm" / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|im_start|>", "<|i_start|>"))
    message = message_of(folder)
    assert "no token '<|im_start|>', which every qwen2 prompt needs; copy tokenizer" in message


def test_a_tokenizer_of_a_larger_vocabulary(folder, tokenizer):
    rows = tokenizer.id("<|im_end|>")
    edit_json(folder / "llm" / "config.json", vocab_size=rows)
    assert f"'<|im_end|>' has id {rows}, the decoder has {rows} rows" in message_of(folder)


def test_an_empty_folder(tmp_path):
    assert f"{tmp_path} is empty; a checkpoint has config.json" in message_of(tmp_path)


def test_a_file_in_place_of_a_folder(folder):
    message = message_of(folder / "config.json")
    assert "config.json is a file; a checkpoint is a folder" in message


def test_the_name_of_a_repository_in_place_of_a_folder():
    message = message_of("Some-Lab/NVILA-9B")
    assert "hf download Some-Lab/NVILA-9B --local-dir NVILA-9B" in message


def test_a_folder_that_is_not_there(tmp_path):
    message = message_of(tmp_path / "absent")
    assert "absent is no folder" in message and "hf download" not in message
    assert "point MODEL (of a node: model_path)" in message


def test_the_shipped_model_named_from_another_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = message_of("models/nano")
    shipped = message.rpartition("the shipped model is ")[2]
    assert (Path(shipped) / "config.json").is_file() and "hf download" not in message


def test_a_download_cache(tmp_path):
    snapshot = tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert f"download cache of Hugging Face; point at {snapshot}" in message_of(tmp_path)


def test_a_checkpoint_in_one_piece(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "none of the folders llm, vision_tower and mm_projector" in message_of(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder):
    path = folder / "llm" / "model.safetensors"
    path.chmod(0)
    assert f"{path} cannot be read (Permission denied)" in message_of(folder)

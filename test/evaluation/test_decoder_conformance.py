# SPDX-License-Identifier: Apache-2.0
"""A quantized decoder held to the quantizer's answers: what passes, and what is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.evaluation.decoder_conformance import check_decoder, is_decoder_folder

DATA = Path(__file__).parents[1] / "data" / "conformance"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DATA / "autoawq" / "quantized", tmp_path / "quantized")
    shutil.copy(DATA / "autoawq" / "expected.safetensors", tmp_path)
    return tmp_path


def change(path, key, step):
    tensors = load_file(path)
    tensors[key] = step(tensors[key])
    save_file(tensors, path)


def test_autoawq_passes():
    result = check_decoder(DATA / "autoawq")
    assert result.passed
    assert (result.num_weights, result.different_weights) == (7, ())
    assert result.logits_difference < 1e-4
    assert json.loads(json.dumps(result.as_dict()))["passed"] is True


def test_folders_are_told_apart():
    assert is_decoder_folder(DATA / "autoawq")
    assert not is_decoder_folder(DATA / "lite")


def test_one_other_bit_of_a_zero_point_is_found(folder):
    key = "model.layers.0.mlp.up_proj.qzeros"
    change(folder / "quantized" / "model.safetensors", key, lambda zeros: zeros ^ 1)
    result = check_decoder(folder)
    assert result.different_weights == ("model.layers.0.mlp.up_proj",)
    assert not result.passed


@pytest.mark.parametrize("value", [0.1, torch.nan])
def test_other_logits_are_found(folder, value):
    change(folder / "expected.safetensors", "logits", lambda logits: logits + value)
    assert not check_decoder(folder).passed


def test_logits_of_another_size_are_refused(folder):
    change(folder / "expected.safetensors", "logits", lambda logits: logits[:, :-1].clone())
    with pytest.raises(CheckpointError, match=r"logits \(40, 512\), \(40, 511\) are expected"):
        check_decoder(folder)


def test_broken_expectations_are_named(folder):
    path = folder / "expected.safetensors"
    save_file({"input_ids": torch.zeros(3, dtype=torch.long)}, path)
    with pytest.raises(CheckpointError, match="has no logits"):
        check_decoder(folder)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        check_decoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"expected\.safetensors is missing"):
        check_decoder(folder)

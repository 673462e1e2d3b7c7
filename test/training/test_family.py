# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError, TrainingError
from nvila_ros.models import weights
from nvila_ros.training.family import (
    change_network,
    check_start,
    from_scratch,
    load_family,
    load_start,
)
from nvila_ros.training.stage_recipe import RECIPES, NetworkChange


@pytest.fixture(scope="module")
def family():
    return load_family(RECIPES / "toy")


@pytest.fixture(scope="module")
def start(family, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    weights.save(folder, *from_scratch(family, seed=3), torch.float32)
    return folder


def test_a_start_of_the_family_loads_in_float32(family, start: Path) -> None:
    model, _ = load_start(family, start)
    assert model.dtype == torch.float32
    assert model.newline_token_ids


def test_an_empty_start_has_sizes_but_no_weights(family, start: Path) -> None:
    model, _ = load_start(family, start, is_empty=True)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_missing_start_says_what_to_run(family, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; run the stage before"):
        check_start(family, tmp_path / "none")


def test_a_start_of_another_size_is_refused_by_its_sizes(start: Path) -> None:
    with pytest.raises(
        CheckpointError, match="no checkpoint of nano: vision hidden_size is 48, expected 192"
    ):
        check_start(load_family(RECIPES / "nano"), start)


def test_a_start_with_another_projector_is_refused(family, start: Path) -> None:
    network = dataclasses.replace(family.network, mm_projector_type="mlp_downsample")
    other = dataclasses.replace(family, network=network)
    with pytest.raises(CheckpointError, match="mm_projector_type is 'mlp_downsample_3x3_fix'"):
        check_start(other, start)


def test_a_start_cut_short_is_refused_before_training(family, start: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(start, broken)
    path = broken / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError):
        load_start(family, broken)


def test_released_families_do_not_start_from_nothing() -> None:
    with pytest.raises(TrainingError, match="nvila assemble nvila-lite-2b"):
        from_scratch(load_family(RECIPES / "nvila-lite-2b"), seed=1)


def test_the_same_seed_gives_the_same_start(family) -> None:
    one, two = (from_scratch(family, seed=5)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_time_tokens_grow_the_vocabulary_by_the_mean(family, tmp_path: Path) -> None:
    model, tokenizer = from_scratch(family, seed=1)
    before = model.llm.model.embed_tokens.weight.detach().clone()
    change_network(model, tokenizer, NetworkChange(num_time_tokens=100))
    after = model.llm.model.embed_tokens.weight
    assert len(after) == len(before) + 100 == model.config.language.vocab_size
    assert torch.equal(after[: len(before)], before)
    torch.testing.assert_close(after[-1], before.mean(0))
    assert tokenizer.encode("<t42>") == [tokenizer.id("<t42>")]
    weights.save(tmp_path / "grown", model, tokenizer, torch.float32)
    again, tokens = weights.load(tmp_path / "grown")
    assert again.config.num_time_tokens == 100
    change_network(again, tokens, NetworkChange(num_time_tokens=100))
    assert torch.equal(again.llm.model.embed_tokens.weight, after)


def test_a_vocabulary_does_not_shrink(family) -> None:
    model, tokenizer = from_scratch(family, seed=1)
    change_network(model, tokenizer, NetworkChange(num_time_tokens=10))
    with pytest.raises(ConfigError, match="does not shrink"):
        change_network(model, tokenizer, NetworkChange(num_time_tokens=5))


def test_a_stage_may_show_more_frames_and_longer_texts(family) -> None:
    model, tokenizer = from_scratch(family, seed=1)
    change = NetworkChange(
        num_video_frames=16, model_max_length=4096, video_pool_sizes=((8, 1, 1),)
    )
    change_network(model, tokenizer, change)
    assert model.config.num_video_frames == 16
    assert model.config.language.model_max_length == 4096
    assert model.config.language.max_position_embeddings == 4096
    assert model.llm.config == model.config.language


def test_assembled_parts_are_a_start(family, start: Path, tmp_path: Path, monkeypatch) -> None:
    from nvila_ros.training import assemble

    parts = dataclasses.replace(family, start="parts")
    monkeypatch.setattr(assemble, "load_family", lambda folder: parts)
    assemble.assemble("toy", start / "vision_tower", start / "llm", tmp_path / "out")
    model, _ = load_start(family, tmp_path / "out")
    expected, _ = load_start(family, start)
    torch.testing.assert_close(
        model.llm.model.embed_tokens.weight,
        expected.llm.model.embed_tokens.weight.bfloat16().float(),
    )
    deviation = float(model.mm_projector.layers[2].weight.detach().std())
    assert deviation == pytest.approx(0.02, rel=0.1)


def test_a_decoder_of_another_size_is_not_assembled(start: Path, tmp_path: Path) -> None:
    from nvila_ros.training.assemble import assemble

    with pytest.raises(CheckpointError, match="not the decoder of nvila-lite-2b: hidden_size"):
        assemble("nvila-lite-2b", start / "vision_tower", start / "llm", tmp_path / "out")
    content = json.loads((start / "config.json").read_text())
    assert content["hidden_size"] == 64

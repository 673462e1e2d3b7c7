# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_runs import KINDS, PARTS, every_kind, losses, run_here, stored

from nvila_ros.errors import ConfigError, TrainingError
from nvila_ros.models import weights
from nvila_ros.training import engine, tower_layers
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.distributed import _fsdp_plugin
from nvila_ros.training.fp8 import PrecisionConfig
from nvila_ros.training.stage_recipe import EngineConfig
from nvila_ros.training.tower_layers import fused_layer
from nvila_ros.training.train import RunOptions, run_stage


@pytest.mark.slow
@every_kind
def test_two_ranks_equal_one(launch, kind: str) -> None:
    environment = KINDS[kind]
    one = launch("one")
    two = launch("two", 2, environment)
    assert two.codes == [0, 0], two.text
    for (step, expected), (other, found) in zip(losses(one.log), losses(two.log), strict=True):
        assert step == other
        assert found == pytest.approx(expected, rel=1e-5)
    expected, found = stored(one.folder), stored(two.folder)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_ranks_with_the_tower_by_hand_equal_one_without(launch) -> None:
    one = launch("one")
    overrides = ["engine.fuse_tower=true", "engine.checkpoint_layers=true"]
    two = launch("two", 2, KINDS["ddp"], overrides=overrides)
    assert two.codes == [0, 0], two.text
    expected, found = stored(one.folder), stored(two.folder)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@every_kind
def test_a_rank_that_never_sees_a_picture_does_not_hang(launch, kind: str) -> None:
    environment = KINDS[kind]
    run = launch("blind", 2, environment, text_rank=1, overrides=["schedule.steps=2"])
    assert run.codes == [0, 0], run.text


@pytest.mark.slow
def test_one_sharded_process_in_bfloat16_follows_one_in_float32(launch) -> None:
    """Micro-batches before the last one reach gradients too, also past a layer that never runs."""
    expected = launch("wide")
    overrides = ["precision.compute=bfloat16", "engine.checkpoint_layers=true"]
    found = launch("sharded", 1, KINDS["fsdp"], overrides=overrides)
    assert found.codes == [0], found.text
    assert dict(losses(found.log)) == pytest.approx(dict(losses(expected.log)), rel=1e-3)


def test_bfloat16_reaches_attention(toy, tmp_path: Path, monkeypatch) -> None:
    """Flash attention takes half precision alone, and queries, keys and values alike."""
    seen = set()
    attend = SampleAttention.__call__

    def spied(self, *states):
        seen.update(each.dtype for each in states)
        return attend(self, *states)

    monkeypatch.setattr(SampleAttention, "__call__", spied)
    run_here(toy, tmp_path, overrides=["schedule.steps=1", "precision.compute=bfloat16"])
    assert seen == {torch.bfloat16}


def test_sharding_does_not_round_what_enters_the_learner() -> None:
    """A token's weight in bfloat16 would be wrong by up to 0.4 %."""
    policy = _fsdp_plugin(PrecisionConfig()).mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    assert not policy.cast_forward_inputs


def test_accumulation_equals_one_big_batch(toy, tmp_path: Path) -> None:
    """Four sequences one after another, or all their samples in one: the same step."""
    small = run_here(toy, tmp_path, "small", overrides=["schedule.steps=2"])
    big = toy.write_recipe(tmp_path / "recipes-big")

    class Joined(toy.ToyBatches):
        def __next__(self):
            return toy.pack([sample for _ in range(4) for sample in self.take()])

    def open_batches(recipe, tokenizer, model, ranks):
        return Joined(tokenizer, model.config, 0, 1, {})

    overrides = ("schedule.steps=2", "batch.sequences=1")
    options = RunOptions(runs=tmp_path / "big", overrides=overrides, use_cpu=True)
    run_stage(big, options, open_batches)
    expected, found = stored(small), stored(tmp_path / "big/toy/1_align")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_frozen_stays_bit_for_bit(toy, tmp_path: Path, part: str) -> None:
    overrides = ["schedule.steps=1", f"learn.{part}=null"]
    before = run_here(toy, tmp_path, "start", overrides=["schedule.steps=1"])
    after = run_here(toy, tmp_path, "next", overrides=overrides, start=str(before / "model"))
    old, new = stored(before), stored(after)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert not any(name.startswith(part) for name in changed)
    for other in set(PARTS) - {part}:
        assert any(name.startswith(other) for name in changed)


def test_the_tower_layer_that_never_runs_stays(toy, tmp_path: Path) -> None:
    folder = run_here(toy, tmp_path, overrides=["schedule.steps=1"])
    start = run_here(
        toy, tmp_path, "again", overrides=["schedule.steps=2"], start=str(folder / "model")
    )
    old, new = stored(folder), stored(start)
    last = [name for name in old if "encoder.layers.2." in name or "post_layernorm" in name]
    assert last
    assert all(torch.equal(old[name], new[name]) for name in last)


def test_checkpointed_layers_learn_the_same(toy, tmp_path: Path) -> None:
    plain = run_here(toy, tmp_path, "plain", overrides=["schedule.steps=2"])
    overrides = ["schedule.steps=2", "engine.checkpoint_layers=true"]
    recomputed = run_here(toy, tmp_path, "recomputed", overrides=overrides)
    expected, found = stored(plain), stored(recomputed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("is_made_again", [False, True])
def test_tower_layers_by_hand_learn_the_same(
    toy, tmp_path: Path, monkeypatch, is_made_again: bool
) -> None:
    calls = []

    def spied(layer, hidden):
        calls.append(layer)
        return fused_layer(layer, hidden)

    monkeypatch.setattr(tower_layers, "fused_layer", spied)
    overrides = [
        "schedule.steps=2",
        "precision.compute=float32",
        f"engine.checkpoint_layers={str(is_made_again).lower()}",
    ]
    plain = run_here(toy, tmp_path, "plain", overrides=overrides)
    assert not calls  # on a CPU nobody asks for it
    fused = run_here(toy, tmp_path, "fused", overrides=[*overrides, "engine.fuse_tower=true"])
    assert len(set(calls)) == 2  # of three, the last one feeds nothing
    expected, found = stored(plain), stored(fused)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)


def test_a_tower_by_hand_resumes_bit_for_bit(toy, tmp_path: Path) -> None:
    settings = {"overrides": ["engine.fuse_tower=true", "engine.checkpoint_layers=true"]}
    whole = run_here(toy, tmp_path, "whole", **settings)
    run_here(toy, tmp_path, "cut", stop_after=3, **settings)  # saved after step 2
    cut = run_here(toy, tmp_path, "cut", resume=True, **settings)
    expected, found = stored(whole), stored(cut)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_where_tower_layers_go_by_hand(monkeypatch) -> None:
    called = []
    monkeypatch.setattr(engine, "compile_layers", lambda model: called.append("compiled"))
    monkeypatch.setattr(engine, "fuse_tower", lambda model: called.append("by hand"))

    def chosen(device="cuda", kind="one", **keys):
        called.clear()
        recipe = SimpleNamespace(engine=EngineConfig(**keys))
        engine._speed_up(None, recipe, SimpleNamespace(device=torch.device(device), kind=kind))
        return [*called]

    both = ["compiled", "by hand"]
    assert chosen(fuse_tower=True) == chosen(kind="ddp", fuse_tower=True) == both
    assert chosen(kind="fsdp", fuse_tower=True) == ["compiled"]
    assert chosen(kind="deepspeed", fuse_tower=True) == ["compiled"]
    assert chosen() == ["compiled"]
    assert chosen(compile_layers=False) == chosen("cpu") == []
    assert chosen(compile_layers=False, fuse_tower=True) == ["by hand"]
    assert chosen("cpu", compile_layers=True) == ["compiled"]


def test_the_output_is_a_checkpoint_that_answers(toy, tmp_path: Path) -> None:
    from nvila_ros.models.ask import ask_pictures

    folder = run_here(toy, tmp_path, overrides=["schedule.steps=1"])
    model, tokenizer = weights.load(folder / "model")
    picture = toy.toy_sample(0).frames[0]
    assert ask_pictures(model, tokenizer, [picture], "What is this?", 4)["num_images"] == 1


def test_adapters_are_trained_resumed_and_merged_into_a_plain_checkpoint(
    toy, tmp_path: Path
) -> None:
    start = run_here(toy, tmp_path, "start", overrides=["schedule.steps=1"]) / "model"
    overrides = ["adapt.tower=layernorm", "adapt.llm=lora", "adapt.rank=4", "adapt.alpha=4"]
    settings = {"overrides": overrides, "start": str(start)}
    whole = run_here(toy, tmp_path, "whole", **settings)
    run_here(toy, tmp_path, "cut", stop_after=3, **settings)
    cut = run_here(toy, tmp_path, "cut", resume=True, **settings)
    before, expected, found = stored(start.parent), stored(whole), stored(cut)
    assert before.keys() == expected.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    changed = {name for name in before if not torch.equal(before[name], found[name])}
    name = "llm.model.layers.0.self_attn.q_proj"
    assert f"{name}.weight" in changed and f"{name}.bias" not in changed
    assert not any(name.endswith("embed_tokens.weight") for name in changed)
    with pytest.raises(ConfigError, match="adapters need a trained start"):
        run_here(toy, tmp_path, "none", overrides=overrides)


def test_a_step_is_shared_evenly_or_refused(toy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match=r"4 sequences, which 3 ranks.*batch.sequences=6"):
        run_here(toy, tmp_path)


def test_answers_that_are_all_ignored_are_refused(toy, tmp_path: Path, monkeypatch) -> None:
    real = toy.ToyBatches.__next__

    def silent(self):
        batch = real(self)
        return dataclasses.replace(batch, weights=torch.zeros_like(batch.weights))

    monkeypatch.setattr(toy.ToyBatches, "__next__", silent)
    with pytest.raises(TrainingError, match="no learned token"):
        run_here(toy, tmp_path)


def test_times_are_learned_with_smoothed_targets(toy, tmp_path: Path) -> None:
    """A batch whose answer is a time: smoothing changes the loss, and only with time_std."""
    from nvila_ros.training.data.encoding import encode
    from nvila_ros.training.data.packing import pack
    from nvila_ros.training.data.sample import Sample, Turn
    from nvila_ros.training.family import change_network, from_scratch, load_family
    from nvila_ros.training.fused_loss import LossConfig
    from nvila_ros.training.learner import Learner
    from nvila_ros.training.stage_recipe import NetworkChange

    toy.write_recipe(tmp_path)
    model, tokenizer = from_scratch(load_family(tmp_path), seed=1)
    change_network(model, tokenizer, NetworkChange(num_time_tokens=10))
    torch.nn.init.normal_(model.llm.model.embed_tokens.weight)  # new rows are all the same
    turns = (Turn(user="When is the red door?", answer="<t3> <t7>"),)
    sample = Sample(key="a", source="toy", kind="text", frames=(), turns=turns)
    batch = pack([encode(sample, tokenizer, model.config)]).to("cpu", torch.float32)
    ids = [tokenizer.id(f"<t{number}>") for number in range(10)]
    plain = Learner(model, LossConfig(), torch.float32)(batch)
    nearly_plain = Learner(model, LossConfig(), torch.float32, ids, 1e-2)(batch)
    smooth = Learner(model, LossConfig(), torch.float32, ids, 1.0)(batch)
    torch.testing.assert_close(nearly_plain, plain)
    assert float((smooth - plain).detach().abs()) > 1e-4

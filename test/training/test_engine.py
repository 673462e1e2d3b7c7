# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.errors import ConfigError, TrainingError
from nvila_ros.models import weights
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.distributed import _fsdp_plugin
from nvila_ros.training.fp8 import PrecisionConfig
from nvila_ros.training.stage_recipe import recipe_path
from nvila_ros.training.train import RunOptions, run_stage

KINDS = {
    "ddp": {},
    "fsdp": {"ACCELERATE_USE_FSDP": "true"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"
)
every_kind = pytest.mark.parametrize(
    "kind",
    ["ddp", "fsdp", *(pytest.param(z, marks=needs_deepspeed) for z in ("zero2", "zero3"))],
)
PARTS = ("vision_tower", "mm_projector", "llm")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a stage's output by part and name."""
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for name, tensor in load_file(folder / "model" / part / "model.safetensors").items()
    }


def losses(log: list[dict]) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log]


def run_here(
    toy, tmp_path: Path, name: str = "runs", recipe: str | None = None, **settings
) -> Path:
    """One stage in this process; returns its folder."""
    path = toy.write_recipe(tmp_path / f"recipes-{name}", recipe or toy.RECIPE)
    toy.run({"recipe": str(path), "runs": str(tmp_path / name), **settings})
    return tmp_path / name / "toy" / "1_align"


def test_a_run_resumes_bit_for_bit(toy, tmp_path: Path) -> None:
    whole = run_here(toy, tmp_path, "whole")
    run_here(toy, tmp_path, "cut", stop_after=3)  # saved after step 2
    cut = run_here(toy, tmp_path, "cut", resume=True)
    expected, found = stored(whole), stored(cut)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(launch) -> None:
    whole = launch("whole")
    assert whole.codes == [0], whole.text
    killed = launch("killed", die_at=14)  # in step 4 of four sequences each; saved after step 2
    assert killed.codes == [-signal.SIGKILL]
    resumed = launch("killed", resume=True)
    assert resumed.codes == [0], resumed.text
    assert losses(resumed.log) == losses(whole.log)
    expected, found = stored(whole.folder), stored(resumed.folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_stage_of_rendered_data_resumes_bit_for_bit(tmp_path: Path) -> None:
    path = recipe_path("toy", "1_align")
    overrides = ("schedule.steps=5", "engine.save_every=2")
    for name, stops in (("whole", [None]), ("cut", [3, None])):
        for number, stop_after in enumerate(stops):
            options = RunOptions(
                runs=tmp_path / name,
                resume=number > 0,
                overrides=overrides,
                use_cpu=True,
                stop_after=stop_after,
            )
            run_stage(path, options)
    whole, cut = (stored(tmp_path / name / "toy" / "1_align") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


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
@every_kind
def test_two_ranks_resume_bit_for_bit(launch, kind: str) -> None:
    environment = KINDS[kind]
    whole = launch("whole", 2, environment)
    assert launch("cut", 2, environment, stop_after=4).codes == [0, 0]
    resumed = launch("cut", 2, environment, resume=True)
    assert resumed.codes == [0, 0], resumed.text
    assert losses(resumed.log) == losses(whole.log)
    expected, found = stored(whole.folder), stored(resumed.folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


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


def test_the_output_is_a_checkpoint_that_answers(toy, tmp_path: Path) -> None:
    from nvila_ros.models.ask import ask_pictures

    folder = run_here(toy, tmp_path, overrides=["schedule.steps=1"])
    model, tokenizer = weights.load(folder / "model")
    picture = toy.toy_sample(0).frames[0]
    assert ask_pictures(model, tokenizer, [picture], "What is this?", 4)["num_images"] == 1


def test_a_loss_that_is_no_number_stops_and_names_the_samples(toy, tmp_path: Path) -> None:
    key = "picture-160"  # of sequence 16, in step 5; saved after step 4
    with pytest.raises(TrainingError, match=f"step 5 is (nan|inf).*toy/{key}.*--resume"):
        run_here(toy, tmp_path, poison=key)
    folder = tmp_path / "runs/toy/1_align"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    assert f"toy/{key}" in json.loads((folder / "not_finite.json").read_text())["keys"]
    assert not (folder / "model").exists()


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


def test_only_the_newest_checkpoints_are_kept(toy, tmp_path: Path) -> None:
    folder = run_here(toy, tmp_path, overrides=["engine.save_every=1"])
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000006"]


def test_a_run_is_not_overwritten_unasked(toy, tmp_path: Path) -> None:
    run_here(toy, tmp_path, overrides=["schedule.steps=2"])
    with pytest.raises(TrainingError, match="holds a run already; go on with --resume"):
        run_here(toy, tmp_path, overrides=["schedule.steps=2"])


def test_a_disk_that_fills_while_saving_loses_nothing(toy, tmp_path: Path, monkeypatch) -> None:
    import torch.distributed.checkpoint as dcp

    whole = run_here(toy, tmp_path, "whole")
    real, saves = dcp.save, []

    def full_disk(state, **arguments):
        saves.append(1)
        real(state, **arguments)
        if len(saves) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp, "save", full_disk)
    with pytest.raises(TrainingError, match=r"No space left.*up to step-00000002.*--resume"):
        run_here(toy, tmp_path)
    folder = tmp_path / "runs/toy/1_align"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    run_here(toy, tmp_path, resume=True)
    expected, found = stored(whole), stored(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_disk_that_fills_at_the_end_keeps_the_last_step(toy, tmp_path: Path, monkeypatch) -> None:
    from nvila_ros.models.writing import PartWriter

    def full_disk(self, key, tensor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", full_disk)
        with pytest.raises(TrainingError, match=r"trained, but .* could not be written.*--resume"):
            run_here(toy, tmp_path)
    folder = tmp_path / "runs/toy/1_align"
    assert not (folder / "model").exists()
    assert not list(folder.glob(".unfinished*"))
    run_here(toy, tmp_path, resume=True)
    assert (folder / "model/config.json").exists()


def test_other_ranks_or_recipes_do_not_resume(toy, tmp_path: Path) -> None:
    folder = run_here(toy, tmp_path, stop_after=2)
    state = folder / "checkpoints/step-00000002/state.json"
    content = json.loads(state.read_text())
    with pytest.raises(Exception, match="other learn than this recipe"):
        run_here(toy, tmp_path, resume=True, overrides=["learn.llm=0.5"])
    state.write_text(json.dumps({**content, "num_ranks": 8}))
    with pytest.raises(TrainingError, match="saved by 8 ranks and this run has 1"):
        run_here(toy, tmp_path, resume=True)


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

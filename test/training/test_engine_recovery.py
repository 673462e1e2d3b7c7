# SPDX-License-Identifier: Apache-2.0
"""Runs that end early, badly or twice: nothing is lost, and what goes on is the same run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from engine_runs import KINDS, every_kind, losses, run_here, stored

from nvila_ros.errors import TrainingError
from nvila_ros.training.stage_recipe import recipe_path
from nvila_ros.training.train import RunOptions, run_stage


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
def test_two_ranks_resume_bit_for_bit(launch, kind: str) -> None:
    environment = KINDS[kind]
    whole = launch("whole", 2, environment)
    assert launch("cut", 2, environment, stop_after=4).codes == [0, 0]
    resumed = launch("cut", 2, environment, resume=True)
    assert resumed.codes == [0, 0], resumed.text
    assert losses(resumed.log) == losses(whole.log)
    expected, found = stored(whole.folder), stored(resumed.folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


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

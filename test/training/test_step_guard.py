# SPDX-License-Identifier: Apache-2.0
"""A gradient that is no number never reaches the weights, and a run of them ends the training."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvila_ros.errors import TrainingError
from nvila_ros.training.recipe import load_recipe
from nvila_ros.training.replay import EpisodeRecord, ViewRecord
from nvila_ros.training.run_nano import build_trainer
from nvila_ros.training.step_guard import MOST_IN_A_ROW, StepGuard

RECIPE = Path(__file__).resolve().parents[2] / "training" / "recipes" / "nano_rehearsal.yaml"


def _parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (7,), (2, 2, 2))]


def _backward(parameters, factor=1.0):
    sum((factor * parameter.square()).sum() for parameter in parameters).backward()


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_gradients_are_clipped_as_pytorch_does_and_stay_where_they_were(max_norm):
    ours, theirs = _parameters(), _parameters()
    guard = StepGuard(ours, max_norm)
    places = [parameter.grad.data_ptr() for parameter in ours]
    for _ in range(2):  # they add up
        _backward(ours)
        _backward(theirs)
    norm = guard.clip()
    assert torch.allclose(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.grad, other.grad)
    assert places == [parameter.grad.data_ptr() for parameter in ours]
    guard.clear()
    assert not any(parameter.grad.any() for parameter in ours)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_nothing_and_too_many_end_the_run(poison, capsys):
    parameters = _parameters()
    guard = StepGuard(parameters, 1.0)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    before = [parameter.clone() for parameter in parameters]

    def step(number, factor):
        _backward(parameters, factor)
        norm = guard.clip()
        optimizer.step()
        guard.clear()
        guard.queue(number, norm, "apartments [31, 7]")

    step(1, poison)
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    assert "step 1 was skipped" in capsys.readouterr().out
    step(2, 1.0)
    assert (guard.num_skipped, guard.num_in_a_row) == (1, 0)
    assert not torch.equal(parameters[0], before[0])
    with pytest.raises(TrainingError, match=r"apartments \[31, 7\].*saved last are good"):
        for number in range(3, 3 + MOST_IN_A_ROW):
            step(number, poison)
    assert guard.num_skipped == 1 + MOST_IN_A_ROW


@pytest.fixture
def trainer(tmp_path):
    recipe = replace(
        load_recipe(RECIPE), num_decisions=2, num_frames=6, num_views=1, ring_frames=40
    )
    trainer = build_trainer(recipe, tmp_path, torch.device("cpu"))
    trainer.prepare()
    sequences, rng = trainer.sequences, np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (4, 192, 192, 3), dtype=np.uint8))
    tickets = trainer.ring.put(frames)
    prompt = sequences.navigation_prompt("Turn left and stop at the red chair.")
    ids = np.full(sequences.prompt_length, sequences.pad_id, np.int16)
    ids[: len(prompt)] = prompt
    shown = np.concatenate([np.zeros((4, 7), np.int64), tickets[:, None]], 1)
    costs, zeros = rng.uniform(1, 9, (4, 10)).astype(np.float32), np.zeros(4, np.int64)
    targets = np.zeros((4, 6), np.float32)
    record = EpisodeRecord.from_shown(ids, len(prompt), shown, costs, targets, zeros, apartment=77)
    talk = sequences.conversation([("Where is the red chair?", "It is 15 degrees left.")])
    trainer.replay.add([record], [ViewRecord(int(tickets[0]), *np.zeros((2, 144), int), *talk, 78)])
    return trainer


def test_the_trainer_outlives_a_bad_batch_and_keeps_what_it_saved(trainer, tmp_path, capsys):
    trainer.step(trainer.recipe.stages[-1], 0.5)
    trainer.save()
    saved = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    trainer.replay.episodes[0].targets[:] = np.nan
    trainer.step(trainer.recipe.stages[-1], 0.5)
    assert "apartments [77, 78]" in capsys.readouterr().out
    assert trainer.guard.num_skipped == 1 and trainer.sums.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in trainer.parameters)
    with torch.no_grad():
        trainer.parameters[3].fill_(torch.inf)
    with pytest.raises(TrainingError, match="kept"):
        trainer.save()
    assert saved and saved == {path.name: path.read_bytes() for path in tmp_path.glob("*.saf*")}


def test_steps_wait_for_decisions_that_were_shown_too_seldom(trainer):
    trainer.collector = SimpleNamespace(num_decisions=10)
    trainer.num_steps = 20  # of two decisions each, in one micro-batch
    assert not trainer.is_ahead()
    trainer.recipe = replace(trainer.recipe, max_reuse=3.0)
    assert trainer.is_ahead()
    trainer.collector.num_decisions = 14
    assert not trainer.is_ahead()

# SPDX-License-Identifier: Apache-2.0
"""On a GPU: what is replayed as a CUDA graph is what runs one kernel at a time."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.training.graphs import Captured
from nvila_ros.training.objectives import AnswerTable
from nvila_ros.training.recipe import load_recipe
from nvila_ros.training.replay import FrameRing
from nvila_ros.training.run_nano import build_trainer
from nvila_ros.training.student import DECIDE_ROWS, Student

RECIPE = Path(__file__).resolve().parents[2] / "training" / "recipes" / "nano_rehearsal.yaml"
pytestmark = pytest.mark.gpu


def test_a_replay_reads_its_arguments_and_adds_to_gradients():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    weight.grad = torch.zeros_like(weight)
    given = torch.arange(3.0, device="cuda")

    def step(value):
        loss = (weight * value).sum()
        loss.backward()
        return loss.detach()

    captured = Captured(step, enabled=True)
    captured(given)
    weight.grad.zero_()
    given.fill_(2.0)
    for _ in range(2):
        loss = captured(given)
    assert float(loss) == 6.0 and weight.grad.tolist() == [4.0, 4.0, 4.0]


def test_graphs_replayed_side_by_side_compute_what_they_compute_alone():
    """In one stream they would share cuBLAS's workspace, which long sums of few outputs use."""
    generator = torch.Generator("cuda").manual_seed(0)
    wide, tall = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for shape in ((64, 16384), (16384, 64))
    )
    graphs = [Captured(lambda a, b, k=k: (k * a) @ b, enabled=True) for k in (1.0, 3.0)]
    alone = [graph(wide, tall).clone() for graph in graphs]
    torch.cuda.synchronize()
    num_wrong = [0, 0]

    def replay(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(300):
                found = graphs[number](wide, tall)
                num_wrong[number] += int(not torch.equal(found, alone[number]))

    threads = [threading.Thread(target=replay, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_wrong == [0, 0]


def test_the_recorded_step_has_the_plain_steps_losses_and_gradients(tmp_path):
    recipe = replace(load_recipe(RECIPE), ring_frames=500, num_frames=60, graphs=True)
    plain, recorded = (
        build_trainer(replace(recipe, graphs=graphs), tmp_path, torch.device("cuda"))
        for graphs in (False, True)
    )
    recorded.model.load_state_dict(plain.model.state_dict())
    recorded.heads.load_state_dict(plain.heads.state_dict())
    rng = np.random.default_rng(0)
    plain.ring.pixels.random_(0, 256)
    recorded.ring.pixels.copy_(plain.ring.pixels)
    sums, gradients = [], []
    slots = torch.from_numpy(rng.integers(1, 500, 60 + recipe.num_views))
    for trainer in (plain, recorded):
        trainer.prepare()
        trainer.shares.fill_(1.0)
        trainer.batch.slots.copy_(slots)
        trainer.batch.weight.fill_(1 / recipe.num_decisions)
        trainer.micro_batch(trainer.batch, trainer.shares)
        sums.append(trainer.sums.cpu())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.parameters]).cpu())
    assert torch.allclose(*sums, rtol=0.02, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_the_recorded_student_chooses_as_the_plain_one(tmp_path):
    trainer = build_trainer(
        replace(load_recipe(RECIPE), ring_frames=500), tmp_path, torch.device("cuda")
    )
    sequences, model = trainer.sequences, trainer.model
    answers = AnswerTable(sequences.answers, sequences.pad_id).cuda()
    rng = np.random.default_rng(0)
    count = DECIDE_ROWS + 9
    prompt = sequences.navigation_prompt("Turn left and stop at the red chair.")
    ids = np.full((count, sequences.prompt_length), sequences.pad_id)
    ids[:, : len(prompt)] = prompt
    shown = rng.integers(1, 500, (count, 8))
    chosen = []
    for captured in (False, True):
        ring = FrameRing(500, 192, torch.device("cuda"), (16, 256))
        ring.pixels.copy_(
            torch.from_numpy(np.random.default_rng(1).integers(0, 256, ring.pixels.shape, np.uint8))
        )
        student = Student(model, answers, sequences, ring, captured)
        if captured:
            student.capture()
        lengths, all_true = np.full(count, len(prompt)), np.ones(count, bool)
        allowed = np.ones((count, 10), bool)
        chosen.append(student.decide(shown, ids, lengths, all_true, allowed))
    assert (chosen[0] == chosen[1]).mean() > 0.95

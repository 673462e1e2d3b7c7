# SPDX-License-Identifier: Apache-2.0
"""Ablations: arms as data, one corpus shown in several ways, halves, scores, exams."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.errors import ConfigError
from nvila_ros.training.ablation.arms import load_ablations
from nvila_ros.training.ablation.corpus import (
    Drive,
    PatchCache,
    PromptTable,
    build_decisions,
    shuffled_rows,
)
from nvila_ros.training.ablation.runners import patches_of
from nvila_ros.training.ablation.scores import half_at_random, half_by_delta, held_out_scores
from nvila_ros.training.mirror import MIRRORED_ACTIONS
from nvila_ros.training.replay import EpisodeRecord, FrameRing, history_indices
from nvila_ros.training.vocabulary import NetworkShape, build_sequences

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes" / "ablations"
WORDS = "Turn left and go through the cyan doorway. Wait by the blue coffee table."
CPU = torch.device("cpu")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(recipe):
    found = load_ablations(recipe)
    assert found.arms[0].name == "plain"
    # The arms that train whole share what time is left, so they come last.
    assert sorted(found.arms, key=lambda arm: arm.whole) == list(found.arms)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("[{name: a}, {name: a}]", "own name"),
        ("[{name: a, goes_on: b}]", "no arm before it"),
        ("[{name: a, keep: best}]", "keep is 'best'"),
        ("[{name: a, drives: own}]", "goes_on"),
        ("[{name: a, twins: true}]", "num_twins is 0"),
        ("[{name: a, twins: true, whole: true}]", "no twins"),
        ("[{name: a, episode: 0.5}]", "episodes"),
        ("[]", "at least one"),
    ],
)
def test_a_wrong_arm_is_refused(tmp_path, arms, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"arms: {arms}\n")
    with pytest.raises(ConfigError, match=message):
        load_ablations(path)


def drive(sequences, num_frames=12, first_ticket=3):
    """A drive with a decision after every third frame."""
    rng = np.random.default_rng(0)
    tickets = np.arange(first_ticket, first_ticket + num_frames)
    last = np.arange(0, num_frames, 3)
    shown = np.array([history_indices(n + 1) for n in last])
    prompt = sequences.navigation_prompt(WORDS)
    ids = np.full(sequences.prompt_length, sequences.pad_id, np.int16)
    ids[: len(prompt)] = prompt
    record = EpisodeRecord.from_shown(
        ids,
        len(prompt),
        np.where(shown < 0, 0, tickets[np.maximum(shown, 0)]),
        rng.random((len(last), 10)).astype(np.float32),
        rng.random((len(last), 6)).astype(np.float32),
        np.zeros(len(last), np.int64),
        apartment=7,
    )
    return Drive(record, tickets, last, 0)


@pytest.mark.parametrize("number", [1, 4, 8])
def test_a_drive_is_shown_with_another_number_of_frames(number):
    made, wanted = build_sequences(), build_sequences(NetworkShape(num_video_frames=number))
    ring = FrameRing(64, 16, CPU, (1, 1))
    found = build_decisions([drive(made)], made, wanted, ring)
    expected = [history_indices(n, number) for n in (1, 4, 7, 10)]
    expected = np.where(np.array(expected) < 0, 0, np.array(expected) + 3)
    assert found.shown.tolist() == expected.tolist()
    length = int(found.lengths[0])
    assert found.ids[0, 0, :length].tolist() == wanted.navigation_prompt(WORDS).tolist()
    assert torch.equal(found.costs[1], found.costs[0][:, MIRRORED_ACTIONS])
    mirrored = wanted.navigation_prompt(WORDS.replace("left", "right"))
    assert found.ids[1, 0, :length].tolist() == mirrored.tolist()
    assert found.apartments.tolist() == [7] * 4


def test_prompts_of_another_projector_are_made_from_the_same_words():
    made = build_sequences()
    wanted = build_sequences(NetworkShape(mm_projector_type="mlp_downsample_2x2_fix"))
    record = drive(made).record
    ids, length = PromptTable(made, wanted)(record.prompt_ids, record.prompt_length)
    assert ids[:length].tolist() == wanted.navigation_prompt(WORDS).tolist()
    assert len(ids) == wanted.prompt_length and set(ids[length:]) == {wanted.pad_id}


def test_cached_patches_are_the_towers_within_a_byte_and_the_mirror_image_has_its_own():
    ring = FrameRing(8, 4, CPU, (1, 1))
    ring.pixels[:] = torch.randint(0, 256, ring.pixels.shape, dtype=torch.uint8)

    def tower(pixels):  # (F, 3, 4, 4) -> (F, 4, 12): its rows
        return pixels.permute(0, 2, 1, 3).flatten(2)

    cache = PatchCache(ring, 4, 12)
    cache.encode(tower, np.array([2, 5]), torch.autocast("cpu", enabled=False))
    slots = torch.tensor([2, 5, 2])
    found = patches_of(*cache.codes_of(slots, torch.tensor([0, 0, 1])))
    pixels = ring.pixels[slots].permute(0, 3, 1, 2).float() / 127.5 - 1.0
    pixels[2] = pixels[2].flip(-1)
    expected = tower(pixels)
    assert (found - expected).abs().max() <= expected.abs().max() / 127


def test_halves_hold_half_and_delta_prefers_what_only_the_large_model_likes():
    large, small = (
        np.array([-1.0, -0.1, -2.0, -0.5, -3.0]),
        np.array([-1.0, -2.0, -0.1, -0.6, -3.5]),
    )
    assert half_by_delta(large, small).tolist() == [False, True, False, True, True]
    kept = half_at_random(101, seed=3)
    assert kept.sum() == 51 and np.array_equal(kept, half_at_random(101, seed=3))
    assert not np.array_equal(kept, half_at_random(101, seed=4))


def test_all_rows_come_once_before_any_comes_again():
    rows = shuffled_rows(np.random.default_rng(0), np.array([4, 7, 9]), 8)
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [4, 7, 9] and len(rows) == 8


def test_scores_of_known_answers():
    costs = np.full((2, 10), 5.0, np.float32)
    costs[:, 3] = 1.0
    scores = np.log(np.full((2, 10), 0.05))
    scores[0, 3] = scores[1, 4] = np.log(0.55)
    found = held_out_scores(costs, scores)
    assert found["best"] == 0.5 and found["regret"] == pytest.approx(2.0)
    assert found["agreement"] == pytest.approx(0.5, abs=1e-4)
    assert found["cross_entropy"] == pytest.approx(-np.log([0.55, 0.05]).mean(), abs=1e-3)


def test_an_exam_is_the_episode_that_simulate_drives():
    """The oracle's motions, in an exam and in `run_episode`, for two arms side by side."""
    from nvila_ros.config import EvaluationConfig
    from nvila_ros.evaluation.drivers import OracleDriver
    from nvila_ros.evaluation.rollout import run_episode
    from nvila_ros.training.ablation.examinee import Examinee

    frames = np.zeros((2, 200, 192, 192, 3), np.uint8)
    exam = Examinee(900_004, 2, frames, most=60)
    expected = run_episode(exam.episode, OracleDriver(), EvaluationConfig())
    while exam.active.any():
        asked = exam.ask()
        best = exam.planner.best(exam.poses[asked.arms], np.zeros(len(asked.arms), int))
        lazy = np.where(asked.arms == 1, 0, best)  # the second stops at once
        exam.advance(asked, lazy)
    exam.close()
    good, lazy = (result.line for result in exam.results())
    assert good["success"] and good["decisions"] == len(expected.actions)
    assert good["spl"] == pytest.approx(expected.metrics.spl, abs=1e-6)
    assert good["regret"] == 0.0 and frames[0, len(expected.poses) - 1].any()
    assert not lazy["success"] and lazy["decisions"] == 1 and lazy["stopped"]


@pytest.mark.slow
def test_toy_arms_train_and_are_examined(tmp_path):
    from dataclasses import replace

    from nvila_ros.training.ablation.exams import Exams
    from nvila_ros.training.ablation.experiment import Ablations
    from nvila_ros.training.ablation.files import load_arm
    from nvila_ros.training.ablation.report import summarise
    from nvila_ros.training.ablation.results import read_results

    recipe = load_ablations(RECIPES / "toy.yaml")
    wanted = ("plain", "twins", "delta_half", "frames_1", "seeing")
    recipe = replace(recipe, arms=tuple(arm for arm in recipe.arms if arm.name in wanted))
    ablations = Ablations(recipe, tmp_path, CPU)
    ablations.run()
    lines = [json.loads(text) for text in (tmp_path / "ablations.jsonl").read_text().splitlines()]
    assert lines[-1]["done"]
    assert [line["arm"] for line in lines if "regret" in line] == list(wanted)
    counts = {
        line["arm"]: line["decisions"] for line in lines if "decisions" in line and "arm" in line
    }
    assert lines[0]["twins"] > 0 and counts["twins"] > counts["plain"]
    held = np.load(tmp_path / "held_out.npz")
    assert all(held[f"arm_{name}"].shape == held["costs"].shape for name in wanted)
    tower = ablations.released.vision_tower.state_dict()
    exams = Exams(tmp_path, 1, 2, CPU)
    try:
        models, shapes = zip(
            *(load_arm(tmp_path / "arms" / name, tower, CPU) for name in wanted), strict=True
        )
        exams.wave(list(wanted), models, shapes, range(900_000, 900_002))
    finally:
        exams.close()
    rows = [json.loads(text) for text in (tmp_path / "exams.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["seed"]) for row in rows} == {
        (name, seed) for name in wanted for seed in (900_000, 900_001)
    }
    assert all(row["decisions"] <= 2 for row in rows)
    arms = summarise(read_results(tmp_path), {})["arms"]  # the report reads what both wrote
    assert list(arms) == list(wanted)
    assert all(arm["num_examined"] == 2 and "regret_95" in arm for arm in arms.values())

# SPDX-License-Identifier: Apache-2.0
"""Micro-batches: constant shapes, and a mirrored row is the mirror image of the plain one."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.training.batches import BatchMaker, soft_targets
from nvila_ros.training.mirror import MIRRORED_ACTIONS
from nvila_ros.training.recipe import load_recipe
from nvila_ros.training.replay import EpisodeRecord, FrameRing, Replay, ViewRecord
from nvila_ros.training.vocabulary import build_sequences

RECIPE = Path(__file__).resolve().parents[2] / "training" / "recipes" / "nano_rehearsal.yaml"


@pytest.fixture(scope="module")
def replay():
    sequences = build_sequences()
    ring = FrameRing(200, 4, torch.device("cpu"), (1, 1))
    replay = Replay(ring)
    rng = np.random.default_rng(0)
    for side in ("left", "right"):
        prompt = sequences.navigation_prompt(f"Turn {side} and stop at the red chair.")
        ids = np.full(sequences.prompt_length, sequences.pad_id, np.int16)
        ids[: len(prompt)] = prompt
        tickets = ring.put(torch.from_numpy(rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)))
        shown = np.concatenate([np.zeros((6, 7), np.int64), tickets[:, None]], 1)
        costs = rng.uniform(1, 9, (6, 10)).astype(np.float32)
        targets = rng.normal(size=(6, 6)).astype(np.float32)
        record = EpisodeRecord.from_shown(
            ids, len(prompt), shown, costs, targets, np.zeros(6, np.int64)
        )
        talk = sequences.conversation([("Where is the red chair?", f"It is 15 degrees {side}.")])
        patches = rng.integers(0, 5, (2, 4), dtype=np.uint8)
        replay.add([record], [ViewRecord(int(tickets[0]), *patches, *talk)])
    return replay, sequences


def _arrays(replay, mirror_share):
    found, sequences = replay
    recipe = replace(load_recipe(RECIPE), num_decisions=12, num_frames=20, num_views=2)
    maker = BatchMaker(
        found, sequences, replace(recipe, mirror_share=mirror_share), torch.device("cpu"), 4
    )
    arrays = maker.arrays(np.random.default_rng(3))
    empty = maker.empty()
    for field in fields(empty):
        assert getattr(empty, field.name).shape == arrays[field.name].shape
        assert getattr(empty, field.name).dtype == arrays[field.name].dtype
    return arrays


def test_mirrored_rows_are_the_mirror_images(replay):
    plain, turned = _arrays(replay, 0.0), _arrays(replay, 1.0)
    assert torch.equal(plain["slots"], turned["slots"])
    shown_frames = plain["slots"][plain["shown"][:, -1]]
    assert (shown_frames > 0).all() and turned["mirrored"][turned["shown"][:, -1]].all()
    assert torch.allclose(plain["target"][:, MIRRORED_ACTIONS], turned["target"])
    assert torch.equal(plain["geometry"][:, 0], -turned["geometry"][:, 0])
    first, last = plain["ids"][0], turned["ids"][0]
    assert (first != last).sum() == 1  # left or right, said once
    assert not torch.equal(plain["view_ids"], turned["view_ids"])
    category = plain["patch_category"].reshape(2, 2, 2)
    assert torch.equal(category.flip(2).reshape(2, 4), turned["patch_category"])


def test_near_equal_costs_share_the_target():
    target = soft_targets(np.array([[1.0, 1.0, 9.0]]), temperature=0.3)
    assert np.allclose(target, [[0.5, 0.5, 0.0]], atol=1e-6)

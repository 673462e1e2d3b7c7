# SPDX-License-Identifier: Apache-2.0
"""The reference implementation's answers on tiny checkpoints in the released layout."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nvila_ros.evaluation import conformance
from nvila_ros.models import weights
from nvila_ros.models.inputs import prepare_video

DATA = Path(__file__).parents[1] / "data" / "conformance"


@pytest.mark.parametrize("variant", ["lite", "nvila"])
def test_answers_equal_the_reference(variant):
    cases = json.loads((DATA / variant / "expected" / "cases.json").read_text())
    results = conformance.check(DATA / variant)
    assert [result.case for result in results] == list(cases) and len(cases) == 14
    for result in results:
        assert result.passed, result
        assert result.tiles_equal is (None if result.case == "text" else True)
        assert result.num_greedy_compared == 8


@pytest.mark.parametrize(
    ("name", "pool_sizes"),
    [
        ("plain", ()),
        ("over_time", ((8, 1, 1),)),
        ("several", ((4, 1, 1), (1, 4, 4), (2, 2, 8))),
    ],
)
@torch.inference_mode()
def test_videos_equal_the_reference(name, pool_sizes):
    model, tokenizer = weights.load(DATA / "nvila", "cpu", torch.float32)
    model.config = replace(model.config, video_pool_sizes=pool_sizes)
    frames = [Image.open(DATA / "video" / f"frame_{index}.png") for index in range(8)]
    expected = load_file(DATA / "video" / f"{name}.safetensors")
    fused = prepare_video(model, tokenizer, "<vila/video>what happens?", frames)
    embeds = model.embed(fused.input_ids, fused.media)
    assert fused.input_ids == expected["input_ids"].tolist()
    assert len(embeds) == int(expected["fused_length"])
    assert torch.allclose(embeds[expected["rows"]], expected["embeds_rows"], rtol=0, atol=1e-5)
    logits = model.logits(model(embeds[None])[0, -1])
    assert torch.allclose(logits, expected["last_logits"], rtol=0, atol=1e-4)

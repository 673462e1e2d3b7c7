# SPDX-License-Identifier: Apache-2.0
"""The reference implementation's answers on tiny checkpoints in the released layout."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nvila_ros.models import weights
from nvila_ros.models.generate import generate_greedy
from nvila_ros.models.inputs import prepare
from nvila_ros.models.preprocess import image_tiles

DATA = Path(__file__).parents[1] / "data" / "conformance"


@pytest.fixture(scope="module", params=["lite", "nvila"])
def checkpoint(request):
    return DATA / request.param, *weights.load(DATA / request.param)


@torch.inference_mode()
@pytest.mark.parametrize("case", ["one_500x300", "text"])
def test_answers_equal_the_reference(checkpoint, case):
    folder, model, tokenizer = checkpoint
    spec = json.loads((folder / "expected" / "cases.json").read_text())[case]
    expected = load_file(folder / "expected" / f"{case}.safetensors")
    images = [
        Image.open(folder / "expected" / f"{case}_{index}.png")
        for index in range(len(spec["image_sizes_wh"]))
    ]
    fused = prepare(model, tokenizer, "".join(spec["parts"]), images)
    embeds = model.embed(fused.input_ids, fused.media)
    logits = model.logits(model(embeds[None])[0])
    rows = expected["rows"].long()

    assert fused.input_ids == expected["input_ids"].tolist()
    assert len(embeds) == int(expected["fused_length"])
    assert torch.allclose(embeds[rows], expected["embeds_rows"], atol=1e-5, rtol=0)
    assert torch.allclose(logits[rows], expected["logits_rows"], atol=1e-4, rtol=0)
    assert torch.allclose(logits[-1], expected["last_logits"], atol=1e-4, rtol=0)
    assert torch.equal(logits[rows].argmax(-1), expected["logits_rows"].argmax(-1))
    greedy = generate_greedy(model, fused.input_ids, fused.media, max_new_tokens=8)
    assert greedy == expected["greedy"].tolist()


def test_tiles_equal_the_reference_bit_for_bit(checkpoint):
    folder, model, _ = checkpoint
    spec = json.loads((folder / "expected" / "cases.json").read_text())["one_500x300"]
    tiles = image_tiles([Image.open(folder / "expected" / "one_500x300_0.png")], model.config)
    bytes_ = (tiles.pixels * 127.5 + 127.5).round().to(torch.uint8).numpy()
    assert [hashlib.sha256(tile.tobytes()).hexdigest() for tile in bytes_] == spec[
        "tile_sha256_uint8_chw"
    ]
    assert tiles.block == (tuple(spec["block_sizes"][0]) if spec["block_sizes"] else None)

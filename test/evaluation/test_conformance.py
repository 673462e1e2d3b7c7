# SPDX-License-Identifier: Apache-2.0
"""The comparison itself, on cases that a tiny network answers for and that are then spoilt."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.evaluation import conformance
from nvila_ros.evaluation.conformance_files import find_folders, message
from nvila_ros.models import weights
from nvila_ros.models.generate import generate_greedy
from nvila_ros.models.inputs import prepare
from nvila_ros.models.preprocess import image_tiles

DECODER = Path(__file__).parents[1] / "data" / "conformance" / "autoawq"
SIZES = ((48, 48), (30, 90), (200, 40))


@pytest.fixture
def folder(tmp_path, tiny_checkpoint):
    """A conformance folder whose reference is the network itself: one case with three pictures."""
    model, tokenizer = tiny_checkpoint()
    weights.save(tmp_path, model, tokenizer, torch.float32)
    expected = tmp_path / "expected"
    expected.mkdir()
    images = []
    for index, size in enumerate(SIZES):
        images.append(Image.effect_noise(size, 60).convert("RGB"))
        images[-1].save(expected / f"three_{index}.png")
    parts = ["go ", "<image>", "\n", "<image>", "<image>", "and stop"]
    tiles = (image_tiles(images, model.config).pixels * 127.5 + 127.5).round().to(torch.uint8)
    hashes = [hashlib.sha256(tile.numpy().tobytes()).hexdigest() for tile in tiles]
    spec = {"parts": parts, "block_sizes": None, "tile_sha256_uint8_chw": hashes}
    (expected / "cases.json").write_text(json.dumps({"three": spec}))
    fused = prepare(model, tokenizer, "".join(parts), images)
    with torch.inference_mode():
        embeds = model.embed(fused.input_ids, fused.media)
        logits = model.logits(model(embeds[None])[0])
    greedy = generate_greedy(model, fused.input_ids, fused.media, max_new_tokens=8)
    rows = torch.arange(0, len(embeds), 2)
    tensors = {
        "input_ids": torch.tensor(fused.input_ids),
        "fused_length": torch.tensor(len(embeds)),
        "rows": rows,
        "embeds_rows": embeds[rows].clone(),
        "logits_rows": logits[rows].clone(),
        "last_logits": logits[-1].clone(),
        "greedy": torch.tensor(greedy),
    }
    save_file(tensors, expected / "three.safetensors")
    return tmp_path


def spoil(folder, **changes):
    path = folder / "expected" / "three.safetensors"
    tensors = load_file(path)
    save_file({**tensors, **{key: change(tensors[key]) for key, change in changes.items()}}, path)


def test_several_pictures_pass(folder):
    (result,) = conformance.check(folder)
    assert result.passed and result.tiles_equal and result.num_greedy_compared == 8


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"input_ids": lambda ids: ids + 1}, "ids_equal", False),
        ({"fused_length": lambda length: length + 1}, "embeds_difference", None),
        ({"logits_rows": lambda logits: -logits}, "argmax_agreement", 0.0),
        ({"greedy": lambda tokens: tokens.flip(0) + 1}, "greedy_equal", False),
        ({"embeds_rows": lambda rows: rows * torch.nan}, "embeds_difference", None),
    ],
)
def test_a_difference_is_seen(folder, changes, field, value):
    spoil(folder, **changes)
    (result,) = conformance.check(folder)
    assert not result.passed and getattr(result, field) == value


def test_tolerances_are_held(folder):
    spoil(folder, embeds_rows=lambda rows: rows + 3e-5, last_logits=lambda row: row + 5e-5)
    (result,) = conformance.check(folder)
    assert result.embeds_difference == pytest.approx(3e-5, rel=0.1)
    assert result.logits_difference == pytest.approx(5e-5, rel=0.1)
    assert not result.passed


def test_greedy_ends_where_the_reference_leaves_the_vocabulary(folder):
    spoil(folder, greedy=lambda tokens: torch.cat((tokens[:3], torch.tensor([10**6] * 5))))
    (result,) = conformance.check(folder)
    assert result.passed and result.num_greedy_compared == 3


def test_other_tiles_are_seen(folder):
    Image.new("RGB", SIZES[0], "red").save(folder / "expected" / "three_0.png")
    (result,) = conformance.check(folder)
    assert result.tiles_equal is False and not result.passed


@pytest.mark.parametrize("name", ["cases.json", "three.safetensors", "three_2.png"])
def test_a_missing_file_is_named(folder, name):
    (folder / "expected" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        conformance.check(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": lambda rows: rows + 10**4}, "rows reach from 10000"),
        ({"rows": lambda rows: rows - 1}, "rows reach from -1"),
        ({"embeds_rows": lambda rows: rows[:-1].clone()}, r"embeds_rows has shape .* is expected"),
        ({"last_logits": lambda row: row[:-1].clone()}, "last_logits has shape"),
        ({"input_ids": lambda ids: ids[None]}, r"input_ids has shape .*\[I\] is expected"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_named(folder, changes, message):
    spoil(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"three\.safetensors: {message}"):
        conformance.check(folder)


@pytest.mark.parametrize("name", ["cases.json", "three.safetensors", "three_2.png"])
def test_a_damaged_file_is_named(folder, name):
    path = folder / "expected" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=name):
        conformance.check(folder)


@pytest.mark.parametrize("cases", [[], {}, {"three": {}}, {"three": {"parts": "<image>"}}])
def test_a_list_of_cases_of_another_form_is_refused(folder, cases):
    (folder / "expected" / "cases.json").write_text(json.dumps(cases))
    with pytest.raises(CheckpointError, match=r"cases\.json"):
        conformance.check(folder)


def test_a_folder_of_folders_is_looked_through(folder, tmp_path):
    assert find_folders(folder) == [folder]
    outer = tmp_path / "outer"
    for name in ("b/expected", "a/quantized", "c"):
        (outer / name).mkdir(parents=True)
    assert find_folders(outer) == [outer / "a", outer / "b"]
    assert find_folders(outer / "c") == [outer / "c"]


def test_media_tokens_within_texts_are_removed():
    assert message(["<image>", " what is <image> ?", "<image>"]) == "<image>what is  ?<image>"
    assert message([" plain ", "a<vila/video>"]) == " plain a"


def test_another_length_is_shown(folder):
    spoil(folder, fused_length=lambda length: length + 1)
    shown = conformance.table(conformance.check(folder), "three")
    assert "length" in [*shown.columns[3].cells]


def test_a_quantized_decoder_is_one_case(tmp_path):
    shutil.copytree(DECODER, tmp_path / "decoder", copy_function=shutil.copyfile)
    path = tmp_path / "decoder" / "expected.safetensors"
    assert [result.passed for result in conformance.check(tmp_path / "decoder")] == [True]
    tensors = load_file(path)
    save_file({**tensors, "logits": tensors["logits"] * torch.nan}, path)
    results = conformance.check(tmp_path / "decoder")
    (content,) = conformance.to_json(results)
    assert content["passed"] is False and content["logits_difference"] is None
    assert conformance.table(results, "decoder").row_count == 1

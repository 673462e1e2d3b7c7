# SPDX-License-Identifier: Apache-2.0
"""Saving and loading, Hugging Face reading what was saved, and every way a folder can be broken."""

import errno
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.nvila import Nvila


@pytest.fixture
def folder(tiny_model, tokenizer, tmp_path):
    weights.save(tmp_path / "saved", tiny_model, tokenizer)
    return tmp_path / "saved"


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def test_what_was_saved_loads_identically(folder, tiny_model, tokenizer):
    model, loaded = weights.load(folder)
    assert states_equal(model, tiny_model)
    assert model.config == tiny_model.config
    assert model.media_token_ids == tiny_model.media_token_ids
    assert model.newline_token_ids == tiny_model.newline_token_ids
    assert loaded.encode("<|im_start|>turn left") == tokenizer.encode("<|im_start|>turn left")


@pytest.mark.parametrize(
    "changes",
    [
        {
            "mm_projector_type": "mlp_downsample",
            "image_aspect_ratio": "dynamic_s2",
            "s2_scales": (40, 80),
        },
        {"mm_vision_select_layer": -1, "num_video_frames": 4, "chat_template": "qwen2"},
        {"video_pool_sizes": ((8, 1, 1), (2, 2, 2)), "num_time_tokens": 3, "max_tiles": 6},
        {"skips_end_after_media": True, "frame_end_text": "; ", "video_rate_hz": 2.0},
        {"mm_projector_type": "mlp_downsample_3x3_s2_new", "video_max_tiles": 4},
        {"image_aspect_ratio": "resize", "s2_scales": (40, 80), "s2_output_scale": 1},
    ],
)
def test_configs_survive_the_round_trip(make_config, tokenizer, tmp_path, changes):
    config = make_config(vocab_size=tokenizer.vocab_size, **changes)
    weights.save(tmp_path, Nvila.from_scratch(config), tokenizer)
    assert weights.load(tmp_path)[0].config == config


def test_the_top_level_describes_the_parts_for_vilas_classes(folder):
    config = json.loads((folder / "config.json").read_text())
    for key in ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg"):
        path = folder / key.removesuffix("_cfg") / "config.json"
        assert config[key] == json.loads(path.read_text())
    assert config["resume_path"] and config["s2"] is False


def test_dtype_on_disk_and_in_memory(tiny_model, tokenizer, tmp_path):
    weights.save(tmp_path, tiny_model, tokenizer, dtype=torch.float16)
    stored = load_file(tmp_path / "llm" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert weights.load(tmp_path)[0].dtype == torch.float32
    assert weights.load(tmp_path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_hugging_face_reads_our_folders(make_config, tokenizer, tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    base = make_config(vocab_size=tokenizer.vocab_size)
    language = type(base.language)(
        **{**vars(base.language), "tie_word_embeddings": tied, "rope_theta": 5e5}
    )
    model = Nvila.from_scratch(make_config(language=language), std=0.2).eval()
    weights.save(tmp_path, model, tokenizer)
    llm, report = transformers.Qwen2ForCausalLM.from_pretrained(
        tmp_path / "llm", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tower, report = transformers.SiglipVisionModel.from_pretrained(
        tmp_path / "vision_tower", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids, pixels = torch.randint(0, tokenizer.vocab_size, (1, 20)), torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        logits = model.logits(model(model.llm.model.embed_tokens(ids)))
        assert torch.allclose(logits, llm(input_ids=ids).logits, atol=1e-4)
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        assert torch.allclose(model.vision_tower(pixels), states[-2], atol=1e-4)


def shard(folder):
    """Rewrite the decoder as two shards with an index."""
    tensors = load_file(folder / "llm" / "model.safetensors")
    (folder / "llm" / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, keys in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / "llm" / file)
        weight_map |= dict.fromkeys(keys, file)
    (folder / "llm" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )


def test_shards_load_as_one_file_does(folder, tiny_model):
    shard(folder)
    assert states_equal(weights.load(folder)[0], tiny_model)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "llm" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        weights.load(folder)


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_tensor_of_another_shape_is_named(folder):
    path = folder / "mm_projector" / "model.safetensors"
    rewrite(path, lambda tensors: tensors.update({"layers.7.bias": torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=r"layers\.7\.bias.*\(5,\).*\(32,\)"):
        weights.load(folder)


def test_a_missing_tensor_is_named(folder):
    path = folder / "llm" / "model.safetensors"
    rewrite(path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight"):
        weights.load(folder)


def test_an_unexpected_tensor_is_named(folder):
    path = folder / "vision_tower" / "model.safetensors"
    rewrite(path, lambda tensors: tensors.update({"strange": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="not expected: strange"):
        weights.load(folder)


def test_unused_entries_of_released_files_are_passed_over(folder):
    path = folder / "vision_tower" / "model.safetensors"
    rewrite(path, lambda tensors: tensors.update({"vision_model.head.probe": torch.zeros(1)}))
    weights.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 500, -100])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"llm/model\.safetensors is truncated or corrupt"):
        weights.load(folder)


def write_pickles(folder, num_files, suffix):
    """The decoder as pickles, and beside it one that a trainer leaves and that holds no weights."""
    tensors = load_file(folder / "llm" / "model.safetensors")
    (folder / "llm" / "model.safetensors").unlink()
    for index in range(num_files):
        part = {key: tensors[key] for key in sorted(tensors)[index::num_files]}
        torch.save(part, folder / "llm" / f"pytorch_model-{index}{suffix}")
    torch.save(object(), folder / "llm" / f"training_args{suffix}")


@pytest.mark.parametrize(("num_files", "suffix"), [(1, ".pt"), (2, ".bin")])
def test_a_pickle_is_refused_with_a_command_that_converts_it(
    tiny_model, tokenizer, tmp_path, num_files, suffix
):
    folder = tmp_path / "it's a model"
    weights.save(folder, tiny_model, tokenizer)
    write_pickles(folder, num_files, suffix)
    with pytest.raises(CheckpointError, match="is a pickle, which can run code") as failure:
        weights.load(folder)
    command = str(failure.value).split("convert it with: ")[1]
    assert command.startswith("nvila convert ")
    program = f"{shlex.quote(sys.executable)} -m nvila_ros.cli convert "
    subprocess.run(command.replace("nvila convert ", program, 1), shell=True, check=True)
    assert states_equal(weights.load(shlex.split(command)[-1])[0], tiny_model)


@pytest.mark.parametrize("name", ["llm", "vision_tower", "mm_projector"])
def test_a_missing_part_is_named(folder, name):
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=name):
        weights.load(folder)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        weights.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llm/config.json", "model_type", "mamba"),
        ("llm/config.json", "hidden_size", None),
        ("llm/config.json", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("llm/config.json", "use_sliding_window", True),
        ("llm/config.json", "quantization_config", {"quant_method": "awq"}),
        ("vision_tower/config.json", "patch_size", None),
        ("mm_projector/config.json", "mm_projector_type", None),
        ("mm_projector/config.json", "mm_projector_type", "mlp2x_gelu"),
        ("config.json", "s2_scales", "448;896"),
        ("config.json", "s2", True),
        ("config.json", "video_encoder", "{"),
    ],
)
def test_a_config_that_cannot_be_used_names_file_and_key(folder, name, key, value):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=name):
        weights.load(folder)


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        weights.load(folder)


def test_a_failed_save_leaves_the_old_weights(folder, tiny_model, tokenizer, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        weights.save(folder, tiny_model, tokenizer)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before
    assert states_equal(weights.load(folder)[0], tiny_model)
    assert not list(folder.rglob("*.unfinished"))

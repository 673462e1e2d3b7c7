# SPDX-License-Identifier: Apache-2.0
"""What `inspect` says of checkpoints, also of one of 8B size whose weights are a hole in a file."""

import io
import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from nvila_ros.errors import CheckpointError
from nvila_ros.evaluation import inspection
from nvila_ros.models import weights
from nvila_ros.models.config import Int8Config, NvilaConfig, QuantizationConfig
from nvila_ros.models.config_saving import save_config
from nvila_ros.models.footprint import Gpu, find_gpu, footprints
from nvila_ros.models.headers import read_header, read_part
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.released import NVILA_8B

GIB = 2**30


def write_hole(path, shapes):
    """A safetensors file with a true header and no data on the disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvila_8b")
    save_config(folder, NVILA_8B, "bfloat16")
    with torch.device("meta"):
        model = Nvila(NVILA_8B)
    for part in inspection.PARTS:
        state = model.get_submodule(part).state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        write_hole(folder / part / "model.safetensors", shapes)
    return folder


def test_a_large_checkpoint_is_described_at_once(large_folder):
    begin_s = time.perf_counter()
    result = inspection.inspect(large_folder)
    assert time.perf_counter() - begin_s < 5.0
    assert result["family"] == "NVILA" and result["tokens_per_frame"] == 256
    assert result["parts"]["mm_projector"]["num_parameters"] == 62_425_088  # as released
    assert result["parts"]["llm"]["dtypes"] == {"BF16": 339}
    assert 7.5e9 < result["parts"]["llm"]["num_parameters"] < 7.7e9
    assert result["num_prompt_tokens"] == 8 * 257 + 256
    json.dumps(result, allow_nan=False)


def test_memory_follows_the_formula():
    sizes = footprints(NVILA_8B, 8)
    half, mixed = sizes["fp16"], sizes["w8a8_w4a16"]
    assert half.cache == mixed.cache == 2 * 28 * 4 * 128 * (8 * 257 + 256) * 2
    assert 14.9 * GIB < half.weights < 15.1 * GIB
    # the decoder's layers: 6.5 G weights of 4.25 bits; head and embedding stay 2.0 GiB
    assert 5.6 * GIB < mixed.weights < 5.9 * GIB
    assert half.total == half.weights + half.cache + half.activations
    tower = 8 * 1024 * (5 * 1152 + 2 * 4304) * 2
    prefill = 2312 * (7 * 3584 + 3 * 18_944) * 2 + 151_648 * 4
    assert half.activations == max(tower, prefill)


def test_more_frames_need_more_memory():
    totals = [footprints(NVILA_8B, count)["fp16"].total for count in (1, 8, 64)]
    assert totals == sorted(set(totals))


@pytest.mark.parametrize(
    ("free_gib", "fits"), [(8, [False, True]), (24, [True, True]), (2, [False, False])]
)
def test_what_fits_is_measured_against_free_memory(large_folder, monkeypatch, free_gib, fits):
    monkeypatch.setattr(inspection, "find_gpu", lambda: Gpu("A card", 32 * GIB, free_gib * GIB))
    result = inspection.inspect(large_folder)
    assert [memory["fits"] for memory in result["memory_bytes"].values()] == fits
    assert result["gpu"]["name"] == "A card"


def test_without_a_gpu_nothing_is_claimed(tiny_folder, monkeypatch):
    monkeypatch.setattr(inspection, "find_gpu", lambda: None)
    result = inspection.inspect(tiny_folder)
    assert result["gpu"] is None
    assert [memory["fits"] for memory in result["memory_bytes"].values()] == [None, None]
    assert "no CUDA GPU" in inspection.tables(result)[-2]


def shown(result, **options):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(*inspection.tables(result, **options), sep="\n")
    return console.export_text()


def test_what_people_read(tiny_folder, monkeypatch):
    monkeypatch.setattr(inspection, "find_gpu", lambda: Gpu("A card", 32 * GIB, 24 * GIB))
    text = shown(inspection.inspect(tiny_folder))
    assert "NVILA-Lite, " in text and "all weights floats" in text
    assert "<image> = " in text and "yes, 24.00 GiB left" in text
    assert "Complete: all " in text and "how memory" not in text
    assert "2 x layers x KV heads" in shown(inspection.inspect(tiny_folder), with_formulas=True)


def test_what_will_not_load_is_said(tiny_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    (folder / "llm" / "tokenizer.json").write_text("{}")
    result = inspection.inspect(folder)
    assert "llm cannot be read" in result["problem"] and result["media_token_ids"] is None
    assert "It will not load: the tokenizer in" in " ".join(shown(result).split())


def test_a_quantized_checkpoint_is_also_counted_as_it_is(tiny_checkpoint, tmp_path):
    model, tokenizer = tiny_checkpoint()
    config = replace(model.config, vision=replace(model.config.vision, quantization=Int8Config()))
    model = Nvila(config)
    weights.save(tmp_path, model, tokenizer, torch.float32)
    result = inspection.inspect(tmp_path)
    memory = result["memory_bytes"]
    assert result["quantization"] == "tower in 8 bits"
    assert memory["w8a8_w4a16"]["weights"] < memory["as_stored"]["weights"]
    assert memory["as_stored"]["weights"] < memory["fp16"]["weights"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"image_aspect_ratio": "dynamic"}, "NVILA-Lite"),
        ({"video_pool_sizes": ((8, 1, 1),)}, "NVILA-Video"),
        ({"mm_projector_type": "mlp_downsample"}, "NVILA-Video"),
        ({}, "NVILA-Lite"),
    ],
)
def test_families_are_known_by_their_features(tiny_checkpoint, changes, name):
    config = tiny_checkpoint()[0].config
    assert inspection.family(NvilaConfig(**{**vars(config), **changes})) == name


def test_a_packed_decoder_is_named_and_needs_no_more_memory():
    packed = QuantizationConfig(layout="awq_gemm")
    config = replace(NVILA_8B, language=replace(NVILA_8B.language, quantization=packed))
    assert inspection.quantization(config) == "decoder awq_gemm, 4 bits in groups of 128"
    assert inspection.quantization(NVILA_8B) is None
    assert footprints(config, 8) == footprints(NVILA_8B, 8)


def test_packed_weights_are_counted_one_by_one(tmp_path):
    from safetensors.torch import save_file

    tensors = {
        "q_proj.qweight": torch.zeros(256, 16, dtype=torch.int32),
        "q_proj.qzeros": torch.zeros(2, 16, dtype=torch.int32),
        "q_proj.scales": torch.zeros(2, 128, dtype=torch.float16),
        "norm.weight": torch.zeros(7, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    part = read_part(tmp_path)
    assert part.num_parameters == 256 * 128 + 7
    assert part.dtypes == {"I32": 2, "F16": 2}
    assert part.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{]"])
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupt, or no"):
        read_header(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    write_hole(path, {"weight": (4, 4)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="its header promises"):
        read_header(path)


def test_missing_shards_and_folders_are_named(tmp_path):
    index = {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model-00001-of-00001"):
        read_part(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="nvila convert"):
        read_part(tmp_path / "empty")
    for folder in (tmp_path / "absent", tmp_path / "absent" / "llm"):
        with pytest.raises(CheckpointError, match="absent"):
            inspection.inspect(folder)


@pytest.mark.gpu
def test_free_memory_is_what_the_card_says_now():
    before = find_gpu()
    held = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    after = find_gpu()
    assert after.name == torch.cuda.get_device_name(0)
    assert before.free_bytes - after.free_bytes >= held.nbytes // 2
    assert after.free_bytes < after.total_bytes

# SPDX-License-Identifier: Apache-2.0
"""Int4 decoders in every layout: equal answers from equal codes, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels import packing
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models import weights
from nvila_ros.models.ask import ask_pictures
from nvila_ros.models.convert import convert
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime_backend import TorchEngine

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def compressed(*, symmetric=False, **changes):
    scheme = {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": 128,
        "symmetric": symmetric,
        **changes,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
        "ignore": ["lm_head"],
    }


@pytest.fixture
def folder(make_config, tokenizer, tmp_path):
    """A float checkpoint whose decoder's linears have whole groups of 128 inputs."""
    base = make_config(vocab_size=tokenizer.vocab_size)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    language = type(base.language)(**{**vars(base.language), **sizes})
    model = Nvila.from_scratch(make_config(language=language), seed=2, std=0.05)
    weights.save(tmp_path / "model", model, tokenizer)
    return tmp_path / "model"


def quantize(linear_weight):
    """(N, K) -> codes (N, K), zero points and scales (N, G): asymmetric, by minimum and maximum."""
    groups = linear_weight.unflatten(1, (-1, 128))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    return codes.flatten(1).to(torch.uint8), zeros.to(torch.uint8), scales


def as_gemm(codes, zeros, scales):
    order = packing.AWQ_GEMM_ORDER
    return {
        "qweight": packing.pack(codes.t(), order),
        "qzeros": packing.pack(zeros.t(), order),
        "scales": scales.t().contiguous(),
    }


def as_gemv(codes, zeros, scales):
    missing = -zeros.shape[1] % 8
    padded = torch.nn.functional.pad(zeros, (0, missing))
    return {
        "qweight": packing.pack(codes),
        "qzeros": packing.pack(padded),
        "scales": torch.nn.functional.pad(scales, (0, missing)),
    }


def as_compressed(codes, zeros, scales):
    return {
        "weight_packed": packing.pack(codes),
        "weight_scale": scales.bfloat16(),
        "weight_zero_point": packing.pack(zeros.t()).t().contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }


def as_symmetric(codes, zeros, scales):
    stored = as_compressed(codes, zeros, scales)
    del stored["weight_zero_point"]
    return stored


LAYOUTS = {
    "gemm": (AWQ, as_gemm),
    "gemv": ({**AWQ, "version": "GEMV"}, as_gemv),
    "compressed": (compressed(), as_compressed),
    "symmetric": (compressed(symmetric=True), as_symmetric),
}


def set_quantization(folder, entry):
    path = folder / "llm" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": entry}))


def pack_decoder(folder, layout, skipped="lm_head"):
    """Rewrite `llm/` in a packed layout; return the dense weights that its codes stand for."""
    entry, store = LAYOUTS[layout]
    path = folder / "llm" / "model.safetensors"
    tensors, dense = load_file(path), {}
    for key in [key for key in tensors if key.endswith("_proj.weight") and skipped not in key]:
        codes, zeros, scales = quantize(tensors.pop(key))
        name = key.removesuffix(".weight")
        tensors |= {f"{name}.{part}": value for part, value in store(codes, zeros, scales).items()}
        zeros = torch.full_like(zeros, 8) if layout == "symmetric" else zeros
        scales = scales.bfloat16() if store in (as_compressed, as_symmetric) else scales
        steps = codes.unflatten(1, (-1, 128)).float() - zeros[..., None]
        dense[key] = (steps.to(scales.dtype) * scales[..., None]).flatten(1)
    save_file(tensors, path)
    set_quantization(folder, entry)
    return dense


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_answers_as_its_dense_weights(folder, layout):
    reference, _ = weights.load(folder)
    dense = pack_decoder(folder, layout)
    model, _ = weights.load(folder)
    for key, value in dense.items():
        reference.llm.get_parameter(key).copy_(value)
        assert torch.equal(model.llm.get_submodule(key[: -len(".weight")]).dequantized(), value)
    embeds = torch.randn(1, 12, 128)
    assert torch.equal(model.logits(model(embeds)), reference.logits(reference(embeds)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_saved_loads_identically(folder, layout, tmp_path):
    pack_decoder(folder, layout)
    first, tokenizer = weights.load(folder)
    weights.save(tmp_path / "again", first, tokenizer)
    second, _ = weights.load(tmp_path / "again")
    expected, found = first.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_converted_loads_identically(folder, layout, tmp_path):
    pack_decoder(folder, layout)
    target = convert(folder, tmp_path / "again", shard_bytes=50_000)
    expected, found = (weights.load(path)[0].state_dict() for path in (folder, target))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert {tensor.dtype for tensor in expected.values()} >= {torch.int32, torch.uint8}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_asked_about_a_picture(folder, layout):
    reference, tokenizer = weights.load(folder)
    dense = pack_decoder(folder, layout)
    for key, value in dense.items():
        reference.llm.get_parameter(key).data.copy_(value)
    picture = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    question = (tokenizer, [picture], "What is this?", 6)
    model, _ = weights.load(folder)
    answers = [ask_pictures(TorchEngine(each), *question)["answer"] for each in (reference, model)]
    assert answers[0] == answers[1] != ""


def test_no_dense_copy_of_the_packed_linears_is_loaded(folder):
    pack_decoder(folder, "gemm")
    model, _ = weights.load(folder, dtype=torch.bfloat16)
    linears = [part for part in model.llm.modules() if isinstance(part, W4A16Linear)]
    assert len(linears) == 14
    assert {part.qweight.dtype for part in linears} == {torch.int32}
    assert {part.scales.dtype for part in linears} == {torch.float16}
    assert not any("_proj.weight" in key for key in model.llm.state_dict())


def test_a_linear_may_be_split_over_shards(folder):
    pack_decoder(folder, "gemm")
    expected = weights.load(folder)[0].state_dict()
    tensors = load_file(folder / "llm" / "model.safetensors")
    (folder / "llm" / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {key: f"part-{index % 2}.safetensors" for index, key in enumerate(names)}
    for file in set(files.values()):
        part = {key: tensors[key] for key in names if files[key] == file}
        save_file(part, folder / "llm" / file)
    index = folder / "llm" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    found = weights.load(folder)[0].state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(
    ("layout", "entry"),
    [
        ("gemm", {**AWQ, "modules_to_not_convert": ["down_proj"]}),
        ("compressed", {**compressed(), "ignore": ["lm_head", "re:.*down_proj"]}),
    ],
)
def test_modules_that_the_config_leaves_out_stay_float(folder, layout, entry):
    pack_decoder(folder, layout, skipped="down_proj")
    set_quantization(folder, entry)
    mlp = weights.load(folder)[0].llm.model.layers[0].mlp
    assert isinstance(mlp.down_proj, torch.nn.Linear)
    assert isinstance(mlp.up_proj, W4A16Linear)


def test_the_words_of_older_autoawq_files(folder):
    pack_decoder(folder, "gemm")
    set_quantization(folder, None)
    entry = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    (folder / "llm" / "quant_config.json").write_text(json.dumps(entry))
    assert weights.load(folder)[0].config.language.quantization.layout == "awq_gemm"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**AWQ, "group_size": 64}, "group_size is 64; 128 is supported"),
        ({**AWQ, "bits": 8}, "bits is 8; 4 is supported"),
        ({**AWQ, "zero_point": False}, "zero_point is False"),
        ({**AWQ, "version": "gemv_fast"}, "version is 'gemv_fast'; 'gemm' or 'gemv'"),
        ({"quant_method": "gptq", "bits": 4}, "quantized by gptq; 'awq' and 'compressed-tensors'"),
        ({"bits": 4}, "an unnamed method"),
        (compressed(group_size=32), "group_size is 32"),
        (compressed(num_bits=8), "num_bits is 8"),
        (compressed(actorder="group"), "actorder is 'group'"),
        ({**compressed(), "format": "naive-quantized"}, "format is 'naive-quantized'"),
        ({**compressed(), "config_groups": {}}, "number of config_groups is 0"),
    ],
)
def test_a_quantization_that_cannot_be_read_exactly_is_refused(folder, entry, message):
    set_quantization(folder, entry)
    with pytest.raises(CheckpointError, match=message) as failure:
        weights.load(folder)
    assert "llm/config.json" in str(failure.value)


def change_tensor(folder, key, value):
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(key)
    save_file(tensors if value is None else {**tensors, key: value}, path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("qzeros", None, r"missing: .*q_proj\.qzeros"),
        ("qweight", torch.zeros(128, 3, dtype=torch.int32), r"qweight has shape \(128, 3\)"),
        ("qweight", torch.zeros(128, 16), "codes are torch.int32"),
        ("scales", torch.ones(1, 128, dtype=torch.int32), "scales are floating-point"),
    ],
)
def test_a_packed_tensor_that_does_not_fit_is_named(folder, part, value, message):
    pack_decoder(folder, "gemm")
    change_tensor(folder, f"model.layers.0.self_attn.q_proj.{part}", value)
    with pytest.raises(CheckpointError, match=message):
        weights.load(folder)


def test_a_decoder_without_whole_groups_is_refused(tiny_model, tokenizer, tmp_path):
    weights.save(tmp_path, tiny_model, tokenizer)
    set_quantization(tmp_path, AWQ)
    with pytest.raises(CheckpointError, match="multiples of 128 and 8"):
        weights.load(tmp_path)

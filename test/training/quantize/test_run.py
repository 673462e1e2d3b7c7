# SPDX-License-Identifier: Apache-2.0
"""`nvila quantize` on a network of a few thousand weights: what it writes, refuses and survives."""

import pytest
import torch

from nvila_ros.errors import ConfigError
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models import weights
from nvila_ros.training.quantize import run, workplace
from nvila_ros.training.quantize.run import quantize


@torch.inference_mode()
def test_the_result_loads_and_answers_nearly_as_the_float_model(checkpoint, quantized):
    target, report = quantized
    (before, _), (after, tokenizer) = weights.load(checkpoint), weights.load(target)
    kinds = [type(part) for part in after.llm.modules()]
    assert kinds.count(W4A16Linear) == 2 * 7
    assert sum(isinstance(part, W8A8Linear) for part in after.vision_tower.modules()) == 3 * 6
    pixels = torch.rand(2, 3, 40, 40) * 2 - 1
    expected, found = before.encode_frames(pixels), after.encode_frames(pixels)
    assert (found - expected).norm() < 0.03 * expected.norm()
    ids = tokenizer.encode("Go through the red door.")
    expected, found = (model(model.embed(ids).unsqueeze(0)) for model in (before, after))
    assert (found - expected).norm() < 0.5 * expected.norm()  # four bits of random weights
    for layer in report["llm"]:
        assert layer["layer_output"]["awq"] < layer["layer_output"]["round_to_nearest"]
    assert not report["vision_tower"][2]["linears"]  # the tower stops before it


def test_feedback_brings_what_layers_add_closer(checkpoint, prompts, tmp_path, job):
    report = quantize(job(checkpoint, prompts, tmp_path / "model", has_feedback=True))
    for layer in report["llm"]:
        assert layer["layer_output"]["feedback"] < layer["layer_output"]["awq"]


def test_hugging_face_reads_the_configuration(quantized):
    transformers = pytest.importorskip("transformers")
    target, _ = quantized
    entry = transformers.AutoConfig.from_pretrained(target / "llm").quantization_config
    assert (entry["quant_method"], entry["bits"], entry["group_size"]) == ("awq", 4, 128)
    assert entry["zero_point"] and entry["version"] == "gemm"
    entry = transformers.AutoConfig.from_pretrained(target / "vision_tower").quantization_config
    assert (entry["quant_method"], entry["format"]) == ("compressed-tensors", "int-quantized")


def test_saving_again_keeps_every_bit(quantized, tmp_path):
    target, _ = quantized
    model, tokenizer = weights.load(target, dtype=torch.float16)
    weights.save(tmp_path / "again", model, tokenizer)
    again, _ = weights.load(tmp_path / "again", dtype=torch.float16)
    for (name, tensor), other in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert tensor.dtype == other.dtype and torch.equal(tensor, other), name


class KilledError(BaseException):
    """As sudden as a signal: nothing catches it."""


@pytest.mark.parametrize("survived", [1, 3, 5, 8, 10, 11, 13, 14, 15, 16])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    monkeypatch, checkpoint, prompts, quantized, tmp_path, survived, job, contents
):
    target, written = tmp_path / "model", 0
    finish = workplace.Workplace._finish

    def finish_some(self, unfinished, name):
        nonlocal written
        written += 1
        if written > survived:
            unfinished.write_bytes(unfinished.read_bytes()[:10])
            raise KilledError
        finish(self, unfinished, name)

    monkeypatch.setattr(workplace.Workplace, "_finish", finish_some)
    with pytest.raises(KilledError):
        quantize(job(checkpoint, prompts, target))
    assert not target.exists()
    monkeypatch.setattr(workplace.Workplace, "_finish", finish)
    quantize(job(checkpoint, prompts, target))
    assert contents(target) == contents(quantized[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unfinished_run_with_other_settings_is_not_mixed_in(
    monkeypatch, checkpoint, prompts, tmp_path, job
):
    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(run.finish, "write", killed)
        with pytest.raises(KilledError):
            quantize(job(checkpoint, prompts, tmp_path / "model", language="none"))
    with pytest.raises(ConfigError, match="differs in language"):
        quantize(job(checkpoint, prompts, tmp_path / "model"))


@pytest.mark.parametrize("scheme", ["vision", "language"])
def test_one_part_alone(checkpoint, prompts, tmp_path, scheme, job):
    target = tmp_path / "model"
    quantize(job(checkpoint, prompts, target, **{scheme: "none"}))
    config = weights.load_config(target)
    assert (config.vision.quantization is None) == (scheme == "vision")
    assert (config.language.quantization is None) == (scheme == "language")

# SPDX-License-Identifier: Apache-2.0
"""`nvila quantize` on a network of a few thousand weights: what it writes, refuses and survives."""

import dataclasses
import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models import weights
from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer
from nvila_ros.training.quantize import autoawq_backend, recordings, run, workplace
from nvila_ros.training.quantize.run import QuantizeJob, quantize

INSTRUCTION = "Go through the red door and stop at the chair."


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_checkpoint(folder, **language):
    tokenizer = build_nano_tokenizer(INSTRUCTION.lower().replace(".", "").split())
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, **language}
    config = NvilaConfig(
        vision=VisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=40,
            patch_size=8,
        ),
        language=LanguageConfig(
            vocab_size=tokenizer.vocab_size,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            model_max_length=512,
            tie_word_embeddings=True,
            **sizes,
        ),
        mm_projector_type="mlp_downsample_3x3_fix",
    )
    model = Nvila.from_scratch(config, seed=3, std=0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", ".bias")):
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    weights.save(folder, model, tokenizer, torch.float16)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return make_checkpoint(tmp_path_factory.mktemp("float") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    random = np.random.default_rng(5)
    for number in range(4):
        picture = random.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    entries = [
        {
            "instruction": INSTRUCTION,
            "frames": [None] * (7 - length) + [f"{n % 4}.png" for n in range(length + 1)],
            "answer": f"The next action is turn left {15 * (1 + length % 3)} degrees.",
        }
        for length in range(5)
    ]
    (folder / recordings.PROMPTS_FILE).write_text(json.dumps({"format": 1, "prompts": entries}))
    return folder


def job(checkpoint, prompts, target, **changes):
    return QuantizeJob(
        **{"model": checkpoint, "target": target, "calibration": str(prompts), **changes}
    )


@pytest.fixture(scope="module")
def quantized(checkpoint, prompts, tmp_path_factory):
    target = tmp_path_factory.mktemp("quantized") / "model"
    return target, quantize(job(checkpoint, prompts, target))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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
    ids = tokenizer.encode(INSTRUCTION)
    expected, found = (model(model.embed(ids).unsqueeze(0)) for model in (before, after))
    assert (found - expected).norm() < 0.5 * expected.norm()  # four bits of random weights
    for layer in report["llm"]:
        assert layer["layer_output"]["awq"] < layer["layer_output"]["round_to_nearest"]
    assert not report["vision_tower"][2]["linears"]  # the tower stops before it


def test_feedback_brings_what_layers_add_closer(checkpoint, prompts, tmp_path):
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
    monkeypatch, checkpoint, prompts, quantized, tmp_path, survived
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
    monkeypatch, checkpoint, prompts, tmp_path
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
def test_one_part_alone(checkpoint, prompts, tmp_path, scheme):
    target = tmp_path / "model"
    quantize(job(checkpoint, prompts, target, **{scheme: "none"}))
    config = weights.load_config(target)
    assert (config.vision.quantization is None) == (scheme == "vision")
    assert (config.language.quantization is None) == (scheme == "language")


def test_a_quantized_checkpoint_is_refused(quantized, prompts, tmp_path):
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize(job(quantized[0], prompts, tmp_path / "model"))


def test_a_width_without_whole_groups_is_named(prompts, tmp_path):
    odd = make_checkpoint(tmp_path / "odd", intermediate_size=192)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down_proj has 192 inputs"):
        quantize(job(odd, prompts, tmp_path / "model"))
    quantize(job(odd, prompts, tmp_path / "model", language="none"))


def test_a_target_with_content_is_refused(checkpoint, prompts, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        quantize(job(checkpoint, prompts, tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vision": "w4a4"}, "expected one of w8a8, none"),
        ({"language": "int3"}, "expected one of w4a16, none"),
        ({"backend": "magic"}, "expected one of own, autoawq"),
        ({"vision": "none", "language": "none"}, "neither"),
    ],
)
def test_unknown_schemes_are_refused(checkpoint, prompts, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        job(checkpoint, prompts, tmp_path, **changes)


@pytest.mark.parametrize("device", ["banana", "cuda:17"])
def test_a_device_that_is_not_there_is_refused_first(checkpoint, prompts, tmp_path, device):
    with pytest.raises(ConfigError, match="cpu"):
        quantize(job(checkpoint, prompts, tmp_path / "model", device=device))
    assert not list(tmp_path.iterdir())


def test_auto_is_the_device_of_this_machine(checkpoint, prompts, tmp_path):
    found = {"cpu": run.plan(job(checkpoint, prompts, tmp_path))["device"]}
    found["auto"] = run.plan(job(checkpoint, prompts, tmp_path, device="auto"))["device"]
    assert found == {"cpu": "cpu", "auto": "cuda" if torch.cuda.is_available() else "cpu"}


def test_too_little_memory_says_what_to_do_and_the_run_goes_on(
    monkeypatch, checkpoint, prompts, tmp_path
):
    target = tmp_path / "model"

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no")

    with monkeypatch.context() as patch:
        patch.setattr(run.DecoderStage, "run", full)
        with pytest.raises(ConfigError, match="run the same command again"):
            quantize(job(checkpoint, prompts, target))
    quantize(job(checkpoint, prompts, target))
    assert (target / "quantization.json").exists()


def test_a_missing_autoawq_says_how_to_install_it(monkeypatch, checkpoint, prompts, tmp_path):
    monkeypatch.setattr(autoawq_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps autoawq"):
        quantize(job(checkpoint, prompts, tmp_path / "model", backend="autoawq"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("nowhere", "does not exist"),
        ("900100:900300", "overlaps the evaluation"),
        ("7:7", "expected 1 to"),
        ("5:x", "does not exist"),
    ],
)
def test_unusable_calibration_is_refused(checkpoint, tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        quantize(job(checkpoint, text, tmp_path / "model"))


def test_a_folder_that_lost_a_picture_is_refused(checkpoint, prompts, tmp_path):
    (tmp_path / "few").mkdir()
    text = (prompts / recordings.PROMPTS_FILE).read_text()
    (tmp_path / "few" / recordings.PROMPTS_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"lacks the picture 0\.png"):
        quantize(job(checkpoint, tmp_path / "few", tmp_path / "model"))


def test_a_full_disk_is_told_and_the_run_goes_on(
    monkeypatch, checkpoint, prompts, quantized, tmp_path
):
    def full(path, num_bytes):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(workplace, "reserve", full)
        with pytest.raises(ConfigError, match="is full; free some space"):
            quantize(job(checkpoint, prompts, tmp_path / "model"))
    quantize(job(checkpoint, prompts, tmp_path / "model"))
    assert contents(tmp_path / "model") == contents(quantized[0])


def test_too_little_space_is_seen_before_the_work(monkeypatch, checkpoint, prompts, tmp_path):
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: usage(1000))
    with pytest.raises(ConfigError, match="are free"):
        quantize(job(checkpoint, prompts, tmp_path / "model"))

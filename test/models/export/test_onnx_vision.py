# SPDX-License-Identifier: Apache-2.0
"""Exported graphs against the network: every projector, float and int8, any number of frames."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros import models
from nvila_ros.errors import ConfigError, ExportError
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models import weights
from nvila_ros.models.export import export_onnx, load_vision, relative_error
from nvila_ros.models.fingerprint import vision_fingerprint
from nvila_ros.models.onnx_calibration import best_rounding, calibrate
from nvila_ros.models.onnx_graph import OPSET
from nvila_ros.models.onnx_runtime import OnnxVision

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FINGERPRINT = "0123456789abcdef"
NANO_FOLDER = Path(models.__file__).parent / "nano"
PROJECTORS = (
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_float32_graphs_are_the_network(tmp_path, projector, make_model, make_frames, export):
    model = make_model(projector)
    run = OnnxVision(export(model, tmp_path), FINGERPRINT)
    for count in (1, 3, 8):
        frames = make_frames(count, seed=count)
        with torch.inference_mode():
            expected = model.encode_frames(frames)
        torch.testing.assert_close(run(frames), expected, rtol=1e-4, atol=1e-4)


def test_several_scales_and_another_layer_and_the_exact_gelu(
    tmp_path, make_model, make_frames, export
):
    model = make_model(
        image_aspect_ratio="dynamic_s2",
        s2_scales=(80, 160, 240),
        mm_vision_select_layer=-2,
        hidden_act="gelu",
    )
    assert model.config.num_scales == 3
    path = export(model, tmp_path)
    assert relative_error(path, FINGERPRINT, model, make_frames(2)) < 1e-5


def test_half_precision_is_as_near_as_its_rounding(tmp_path, make_model, make_frames, export):
    model = make_model()
    path = export(model, tmp_path, "fp16", "fp16")
    frames = make_frames(2)
    assert OnnxVision(path, FINGERPRINT)(frames).dtype == torch.float32
    assert relative_error(path, FINGERPRINT, model, frames) < 5e-3


def test_int8_is_near_the_network_with_a_scale_per_token(
    tmp_path, make_model, make_int8, make_frames, export
):
    model = make_int8(make_model())
    scales = calibrate(model, list(make_frames(24)))
    assert len(scales) == 4 * model.config.num_vision_layers
    path = export(model, tmp_path, "int8", scales=scales)
    assert relative_error(path, FINGERPRINT, model, make_frames(4, seed=9)) < 3e-2
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == len(scales)
    assert kinds.count("DequantizeLinear") == 2 * len(scales)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    assert stored["layers.0.fc1.weight"].data_type == onnx.TensorProto.INT8


def test_int8_weights_without_scales_are_written_as_the_floats_they_stand_for(
    tmp_path, make_model, make_int8, make_frames, export
):
    model = make_int8(make_model())
    path = export(model, tmp_path)
    dense = make_model()
    for layer, plain in zip(
        model.vision_tower.vision_model.encoder.layers,
        dense.vision_tower.vision_model.encoder.layers,
        strict=True,
    ):
        for name, linear in layer.named_modules():
            if isinstance(linear, W8A8Linear):
                plain.get_submodule(name).weight.data = linear.dequantized()
    assert relative_error(path, FINGERPRINT, dense, make_frames(2)) < 1e-5


def test_a_graph_says_what_it_is(tmp_path, make_model, export):
    model = onnx.load(export(make_model(), tmp_path))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == OPSET
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "frames"
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["nvila_fingerprint"] == FINGERPRINT
    assert properties["nvila_precision"] == "fp32"
    assert "80 px" in properties["nvila_input"]


def test_a_graph_has_nothing_to_simplify(tmp_path, make_model, export):
    """No constant is computed at run time, nothing is computed twice, nothing is left over."""
    graph = onnx.load(export(make_model(), tmp_path)).graph
    constants = {tensor.name for tensor in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    assert constants <= used
    assert all(set(node.input) - constants for node in graph.node)
    calls = [(node.op_type, *node.input, str(node.attribute)) for node in graph.node]
    assert len(calls) == len(set(calls))


def test_large_weights_lie_in_a_file_beside_the_graph(
    tmp_path, monkeypatch, make_model, make_frames, export
):
    monkeypatch.setattr("nvila_ros.models.onnx_graph.INLINE_BYTES", 1000)
    model = make_model()
    path = export(model, tmp_path)
    assert path.with_name(path.name + ".weights").stat().st_size > path.stat().st_size / 2
    assert relative_error(path, FINGERPRINT, model, make_frames(1)) < 1e-5


def test_values_beyond_half_precision_are_refused_by_name(tmp_path, make_model, export):
    model = make_model()
    model.mm_projector.layers[2].weight.data[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"projector.2.weight .* fp32"):
        export(model, tmp_path, "fp16", "fp16")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, make_model, export):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(ExportError, match=r"No space left .* MB"):
        export(make_model(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_disk_does_not_take_leaves_nothing_behind(
    tmp_path, make_model, export, largest_file
):
    largest_file(20_000)
    with pytest.raises(ExportError, match=r"cannot write .*: File too large; it needs .* MB"):
        export(make_model(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, said", [("opset", "[Oo]pset 99"), ("op", "Frobnicate")])
def test_a_graph_of_an_unknown_opset_or_op_is_refused_in_one_line_with_the_command(
    tmp_path, make_model, export, change, said
):
    path = export(make_model(), tmp_path)
    stored = onnx.load(path)
    if change == "opset":
        stored.opset_import[0].version = 99
    else:
        stored.graph.node[3].op_type = "Frobnicate"
    onnx.save(stored, path)
    with pytest.raises(ExportError, match=said) as caught:
        OnnxVision(path, FINGERPRINT, "robot/model")
    text = str(caught.value)
    assert text.endswith("nvila export robot/model --part vision --precision fp32")
    assert "\n" not in text and len(text) < 700


def test_int8_asks_for_scales_and_floats_for_none(tmp_path, make_model, make_int8, export):
    with pytest.raises(ConfigError, match="int8 needs activation scales"):
        export(make_model(), tmp_path, "int8")
    with pytest.raises(ExportError, match=r"layers\.0\.qkv"):
        export(make_int8(make_model()), tmp_path, "int8", scales={})


def test_another_checkpoints_or_a_broken_graph_is_refused_with_the_command(
    tmp_path, make_model, export
):
    path = export(make_model(), tmp_path)
    with pytest.raises(ExportError, match=r"another checkpoint .* nvila export"):
        OnnxVision(path, "f" * 16, "robot/model")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"cannot use .* nvila export robot/model"):
        OnnxVision(path, FINGERPRINT, "robot/model")
    with pytest.raises(ExportError, match="missing"):
        OnnxVision(tmp_path / "none.onnx", FINGERPRINT)


def test_scales_give_up_outliers_that_cost_more_than_they_carry():
    rows = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 60.0
    heavy = torch.tensor([1e-4, *[1.0] * 7])
    assert best_rounding(rows, heavy).scale < 0.5 * 60.0 / 127
    assert best_rounding(rows, torch.tensor([1e4, *[1e-4] * 7])).scale * 127 > 30.0


def test_values_to_one_side_of_zero_use_all_codes():
    rows = torch.nn.functional.gelu(torch.randn(512, 8, generator=torch.Generator().manual_seed(0)))
    rounding = best_rounding(rows, torch.ones(8))
    assert rounding.middle > 0.3 * float(rows.max())
    assert rounding.scale < 0.6 * float(rows.max()) / 127


def test_calibration_without_frames_or_with_infinite_ones_is_refused(make_model, make_int8):
    model = make_int8(make_model())
    with pytest.raises(ExportError, match="--calibration"):
        calibrate(model, [])
    with pytest.raises(ExportError, match="not finite"):
        best_rounding(torch.tensor([[float("nan"), 1.0]]), torch.ones(2))


def test_the_small_checkpoint_exports_without_its_decoder(tmp_path, make_frames):
    model = load_vision(NANO_FOLDER)
    assert model.llm.model.embed_tokens.weight.is_meta
    path = export_onnx(
        model,
        tmp_path,
        fingerprint=vision_fingerprint(NANO_FOLDER),
        precision="fp32",
        float_type="fp32",
        frames=(1, 8),
    ).path
    whole, _ = weights.load(NANO_FOLDER)
    frames = make_frames(2, side=model.config.vision.image_size)
    with torch.inference_mode():
        expected = whole.encode_frames(frames).numpy()
    got = OnnxVision(path, vision_fingerprint(NANO_FOLDER))(frames).numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_fingerprint_changes_with_a_weight_and_not_with_the_place(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(NANO_FOLDER, copy)
    assert vision_fingerprint(copy) == vision_fingerprint(NANO_FOLDER)
    file = next((copy / "vision_tower").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[1 << 20] ^= 1
    file.write_bytes(content)
    assert vision_fingerprint(copy) != vision_fingerprint(NANO_FOLDER)

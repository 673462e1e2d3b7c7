# SPDX-License-Identifier: Apache-2.0
"""Linears of an int8 tower that stay in floats: named, put back, and seen in the graph."""

import pytest
import torch

from nvila_ros.errors import ConfigError
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.export import relative_error
from nvila_ros.models.onnx_calibration import calibrate
from nvila_ros.models.onnx_float_layers import float_names, float_text, keep_floats

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FINGERPRINT = "0123456789abcdef"


def test_linears_that_stay_in_floats_carry_no_rounding_and_bring_the_graph_nearer(
    tmp_path, make_model, make_int8, make_frames, export
):
    original, frames = make_model(), make_frames(4, seed=9)
    errors = {}
    for kept in ("none", "0.fc1,fc2"):
        model = make_int8(make_model())
        names = float_names(kept, model.config.num_vision_layers)
        keep_floats(model, names, original)
        scales = calibrate(model, list(make_frames(24)))
        assert not set(names) & set(scales)
        assert len(scales) == 4 * model.config.num_vision_layers - len(names)
        path = export(model, tmp_path / kept, "int8", scales=scales)
        errors[kept] = relative_error(path, FINGERPRINT, original, frames)
        stored = onnx.load(path)
        rounded = [node for node in stored.graph.node if node.op_type == "QuantizeLinear"]
        steps = {node.input[1].removesuffix(".activation_scale") for node in rounded}
        assert steps == set(scales)
        properties = {entry.key: entry.value for entry in stored.metadata_props}
        assert properties["nvila_float_layers"] == float_text(model)
        types = {tensor.name: tensor.data_type for tensor in stored.graph.initializer}
        for name in names:
            assert types[f"{name}.weight"] == onnx.TensorProto.FLOAT
    assert errors["0.fc1,fc2"] < 0.8 * errors["none"] < 3e-2


def test_kept_floats_are_the_checkpoints_own_before_smoothing(make_model, make_int8):
    original, model = make_model(), make_int8(make_model())
    layer, own = (net.vision_tower.vision_model.encoder.layers[1] for net in (model, original))
    layer.layer_norm2.weight.data *= 0.5  # as smoothing leaves it
    dense = layer.mlp.fc2.dequantized()
    keep_floats(model, ["layers.1.fc1"], original)
    assert torch.equal(layer.layer_norm2.weight, own.layer_norm2.weight)
    assert torch.equal(layer.mlp.fc1.weight, own.mlp.fc1.weight)
    keep_floats(model, ["layers.1.fc2"])  # of a checkpoint that has int8 weights alone
    assert torch.equal(layer.mlp.fc2.weight, dense)
    assert float_text(model) == "1.fc1,1.fc2"
    assert isinstance(layer.self_attn.q_proj, W8A8Linear)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("none", ()),
        ("1.fc2,0.fc1", ("layers.0.fc1", "layers.1.fc2")),
        ("fc2, 0.fc1", ("layers.0.fc1", "layers.0.fc2", "layers.1.fc2")),
    ],
)
def test_float_layers_are_named_one_by_one_or_by_kind(text, expected):
    assert float_names(text, 2) == expected


@pytest.mark.parametrize("text", ["fc3", "2.fc1", "-1.fc1", "", "layers.0.fc1", "fc1;fc2"])
def test_float_layers_that_a_tower_does_not_have_are_refused(text):
    with pytest.raises(ConfigError, match=r"float layers are .* qkv, out_proj, fc1, fc2 .* 0 to 1"):
        float_names(text, 2)


def test_an_int8_tower_without_int8_is_refused():
    with pytest.raises(ConfigError, match="leave nothing in int8; take --precision"):
        float_names("qkv,out_proj,fc1,fc2", 2)

# SPDX-License-Identifier: Apache-2.0
"""A tower of a few thousand weights, exported; and single int8 products in several forms."""

import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.config import LanguageConfig, NvilaConfig, VisionConfig
from nvila_ros.models.export import export_onnx
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.onnx_calibration import calibrate
from nvila_ros.models.onnx_float_layers import float_names, keep_floats

FINGERPRINT = "0123456789abcdef"
SIDE_PX = 80


def build_model(projector="mlp_downsample_3x3_fix", **changes):
    vision = VisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=16,  # a side of 5: both 2x2 and 3x3 blocks leave a rest
        hidden_act=changes.pop("hidden_act", "gelu_pytorch_tanh"),
    )
    language = LanguageConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        model_max_length=512,
    )
    config = NvilaConfig(vision=vision, language=language, mm_projector_type=projector, **changes)
    return Nvila.from_scratch(config, std=0.2).eval()


def to_int8(model):
    for layer in model.vision_tower.vision_model.encoder.layers:
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, torch.nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(layer.get_submodule(parent), child, W8A8Linear.from_linear(linear))
    return model


def draw_frames(count, side=SIDE_PX, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def write_graph(model, out, precision="fp32", float_type="fp32", scales=None):
    written = export_onnx(
        model,
        out,
        fingerprint=FINGERPRINT,
        precision=precision,
        float_type=float_type,
        frames=(1, 8),
        scales=scales,
    )
    return written.path


@pytest.fixture
def make_model():
    return build_model


@pytest.fixture
def make_int8():
    return to_int8


@pytest.fixture
def make_frames():
    return draw_frames


@pytest.fixture
def export():
    return write_graph


@pytest.fixture
def largest_file():
    """Bytes -> no file of this process may become larger, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def graph_of(tmp_path):
    """Precision -> a graph in half precision, or in int8 with the rest and some linears in half."""

    def make(precision):
        if precision == "fp16":
            return write_graph(build_model(), tmp_path, "fp16", "fp16")
        model = to_int8(build_model())
        keep_floats(model, float_names("0.fc1,fc2", model.config.num_vision_layers), build_model())
        scales = calibrate(model, list(draw_frames(8)))
        return write_graph(model, tmp_path, "int8", "fp16", scales)

    return make


@pytest.fixture
def wide_int8(tmp_path):
    """Linears kept in floats -> a graph of three layers as wide as SigLIP's, int8 and halves."""

    def make(kept):
        config = build_model().config
        vision = replace(
            config.vision,
            hidden_size=1152,
            intermediate_size=4304,
            num_attention_heads=16,
            num_hidden_layers=3,
        )
        wide = replace(config, vision=vision, mm_vision_select_layer=-1)
        original = Nvila.from_scratch(wide, std=0.02).eval()
        model = to_int8(Nvila.from_scratch(wide, std=0.02).eval())
        keep_floats(model, float_names(kept, 3), original)
        scales = calibrate(model, list(draw_frames(2)))
        return write_graph(model, tmp_path / kept, "int8", "fp16", scales)

    return make


@pytest.fixture
def product(tmp_path):
    """(form, K, N) -> a graph with one product of fp16 activations (F, K) and a weight (K, N)."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    def make(form, inputs, outputs):
        generator = np.random.default_rng(0)
        half = np.float16
        weights = {
            "codes": generator.integers(-127, 128, (inputs, outputs)).astype(np.int8),
            "steps": np.full(outputs, 0.01, half),
            "step": np.array(0.02, half),
            "zero": np.array(0, np.int8),
            "bytes_zero": np.array(128, np.uint8),
            "limit": np.array(127, half),
            "dense": (generator.standard_normal((inputs, outputs)) / 100).astype(half),
        }
        dense = helper.make_node("DequantizeLinear", ["codes", "steps"], ["weight"], axis=1)
        multiply = helper.make_node("MatMul", ["rounded", "weight"], ["features"])

        def rounding(step, zero):
            return [
                helper.make_node("QuantizeLinear", ["pixels", step, zero], ["quantized"]),
                helper.make_node("DequantizeLinear", ["quantized", step, zero], ["rounded"]),
            ]

        nodes = {
            "float16": [helper.make_node("MatMul", ["pixels", "dense"], ["features"])],
            "per_tensor": [*rounding("step", "zero"), dense, multiply],
            "dynamic_per_tensor": [
                helper.make_node("Abs", ["pixels"], ["magnitude"]),
                helper.make_node("ReduceMax", ["magnitude"], ["largest"], keepdims=0),
                helper.make_node("Div", ["largest", "limit"], ["found"]),
                *rounding("found", "zero"),
                dense,
                multiply,
            ],
            "zero_point": [*rounding("step", "bytes_zero"), dense, multiply],
            "matmul_integer": [
                helper.make_node("QuantizeLinear", ["pixels", "step", "zero"], ["quantized"]),
                helper.make_node("MatMulInteger", ["quantized", "codes"], ["sums"]),
                helper.make_node("Cast", ["sums"], ["features"], to=onnx.TensorProto.FLOAT16),
            ],
        }[form]
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            form,
            [helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT16, ["F", inputs])],
            [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT16, ["F", outputs])],
            [
                numpy_helper.from_array(value, name)
                for name, value in weights.items()
                if name in used
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / f"{form}.onnx"
        onnx.save_model(model, path)
        return path

    return make

# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs written node by node: names, weights and quantized products, checked when saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvila_ros.errors import ConfigError, ExportError, install_hint

OPSET = 20  # the first with Gelu; ONNX Runtime >= 1.17 and TensorRT >= 10 read it
IR_VERSION = 10
INLINE_BYTES = 64 << 20  # larger weights lie in a file of their own beside the graph
WEIGHTS_SUFFIX = ".weights"
PRODUCER = "nvila_ros"


def import_onnx() -> Any:
    """The onnx package, or a ConfigError that names the extra."""
    try:
        import onnx
    except ImportError:
        raise ConfigError(f"exporting needs the package onnx; {install_hint('export')}") from None
    return onnx


@dataclass(frozen=True)
class Rounding:
    """Activations x in int8: x is about scale * code + middle, |code| at most 128."""

    scale: float
    middle: float = 0.0


class OnnxGraph:
    """A graph under construction. Values are named by strings; `float_type` is all floats' type.

    Linear layers come as (N, K) weights, as in torch, and are stored (K, N), as MatMul takes them.
    """

    def __init__(self, name: str, float_type: torch.dtype) -> None:
        self._onnx = import_onnx()
        self._name = name
        self._numpy_type = {torch.float16: np.float16, torch.float32: np.float32}[float_type]
        self._onnx_type = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(self._numpy_type))
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: list[str | int]) -> str:
        """A float input; strings are sizes that may vary."""
        value = self._onnx.helper.make_tensor_value_info(name, self._onnx_type, shape)
        self._inputs.append(value)
        return name

    def output(self, value: str, name: str, shape: list[str | int]) -> None:
        """Gives a value out under a name."""
        self.node("Identity", [value], name=name)
        info = self._onnx.helper.make_tensor_value_info(name, self._onnx_type, shape)
        self._outputs.append(info)

    def node(self, kind: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        """Adds one operation; its one output's name, made up where none is given."""
        output = name or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(
            self._onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        )
        return output

    def floats(self, name: str, tensor: Tensor) -> str:
        """A float weight in the graph's type; ExportError where it does not fit into it."""
        array = tensor.detach().float().cpu().numpy()
        with np.errstate(over="ignore"):  # told apart below, by name
            stored = array.astype(self._numpy_type)
        if not np.isfinite(stored).all():
            raise ExportError(
                f"{name} has values up to {np.abs(array).max():g} that {stored.dtype} cannot hold; "
                "export with --precision fp32"
            )
        return self._store(name, stored)

    def integers(self, name: str, values: list[int]) -> str:
        """An int64 constant, such as a shape."""
        return self._store(name, np.array(values, np.int64))

    def integers_scalar(self, name: str, value: int) -> str:
        """An int64 constant without axes, such as an index."""
        return self._store(name, np.array(value, np.int64))

    def codes(self, name: str, tensor: Tensor) -> str:
        """An int8 weight."""
        return self._store(name, tensor.detach().cpu().numpy().astype(np.int8))

    def reshape(self, value: str, shape: list[int]) -> str:
        """0 keeps a size, -1 is what is left."""
        name = "shape_" + "_".join(str(size).replace("-", "m") for size in shape)
        return self.node("Reshape", [value, self.integers(name, shape)])

    def transpose(self, value: str, order: list[int]) -> str:
        """Axes in a new order."""
        return self.node("Transpose", [value], perm=order)

    def linear(self, value: str, name: str, weight: Tensor, bias: Tensor | None) -> str:
        """(..., K) -> (..., N) with a float weight (N, K)."""
        stored = self.floats(f"{name}.weight", weight.t())
        return self._biased(self.node("MatMul", [value, stored]), name, bias)

    def int8_linear(
        self,
        value: str,
        name: str,
        weight: tuple[Tensor, Tensor],
        bias: Tensor | None,
        rounding: Rounding,
    ) -> str:
        """The same in int8: codes (N, K) with a scale per output (N,), one rounding of activations.

        Written as the explicit Q/DQ pairs that ONNX Runtime and TensorRT turn into one product.
        TensorRT refuses zero points, so the middle is taken off before and its product, which does
        not depend on the activations, put into the bias.
        """
        codes, scales = weight
        if rounding.middle:
            middle = self.floats(f"{name}.activation_middle", torch.tensor(rounding.middle))
            value = self.node("Sub", [value, middle])
            constant = rounding.middle * scales.double() * codes.double().sum(1)
            bias = constant.float() if bias is None else (bias.double() + constant).float()
        step = self.floats(f"{name}.activation_scale", torch.tensor(rounding.scale))
        zero = self.codes("zero", torch.tensor(0))
        quantized = self.node("QuantizeLinear", [value, step, zero])
        rounded = self.node("DequantizeLinear", [quantized, step, zero])
        stored = self.codes(f"{name}.weight", codes.t().contiguous())
        steps = self.floats(f"{name}.weight_scale", scales)
        dense = self.node("DequantizeLinear", [stored, steps], axis=1)
        return self._biased(self.node("MatMul", [rounded, dense]), name, bias)

    def layer_norm(self, value: str, name: str, norm: torch.nn.LayerNorm) -> str:
        """Over the last axis, computed in float32."""
        scale = self.floats(f"{name}.weight", norm.weight)
        shift = self.floats(f"{name}.bias", norm.bias)
        return self.node(
            "LayerNormalization", [value, scale, shift], axis=-1, epsilon=norm.eps, stash_type=1
        )

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Writes the checked graph; large weights go to `<path>.weights`. Nothing half-written."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._weights.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=PRODUCER
        )
        helper.set_model_props(model, metadata)
        num_bytes = sum(len(weight.raw_data) for weight in self._weights.values())
        weights_file = path.name + WEIGHTS_SUFFIX
        partial = path.with_name(path.name + ".part")
        external = num_bytes > INLINE_BYTES
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / weights_file).unlink(missing_ok=True)
        try:
            self._onnx.save_model(
                model,
                str(partial),
                save_as_external_data=external,
                location=weights_file if external else None,
                size_threshold=1024,
            )
            self._onnx.checker.check_model(str(partial), full_check=True)
        except OSError as error:
            partial.unlink(missing_ok=True)
            (path.parent / weights_file).unlink(missing_ok=True)
            raise ExportError(
                f"cannot write {path}: {error.strerror or error}; it needs "
                f"{num_bytes / 1e6:.0f} MB, free some or choose another --out"
            ) from error
        if external:  # onnx makes it for its owner alone
            (path.parent / weights_file).chmod(partial.stat().st_mode)
        partial.replace(path)

    def _biased(self, value: str, name: str, bias: Tensor | None) -> str:
        if bias is None:
            return value
        return self.node("Add", [value, self.floats(f"{name}.bias", bias)])

    def _store(self, name: str, array: np.ndarray) -> str:
        if name not in self._weights:
            tensor = self._onnx.numpy_helper.from_array(array.copy(order="C"), name)
            self._weights[name] = tensor
        return name


def attention_scale(head_width: int) -> Tensor:
    """What queries are multiplied with: 1 / sqrt(head width)."""
    return torch.tensor(1.0 / math.sqrt(head_width))

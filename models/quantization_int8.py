# SPDX-License-Identifier: Apache-2.0
"""Int8 towers: compressed-tensors' int-quantized form, and its way into `W8A8Linear`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.config import Int8Config
from nvila_ros.models.quantization import check_entry, matches

# What the engine computes: weights per output, activations per token as they come, both symmetric.
WEIGHTS = {
    "num_bits": 8,
    "type": "int",
    "strategy": "channel",
    "symmetric": True,
    "dynamic": False,
}
ACTIVATIONS = {
    "num_bits": 8,
    "type": "int",
    "strategy": "token",
    "symmetric": True,
    "dynamic": True,
}


def read_int8(data: dict[str, Any], path: Path) -> Int8Config:
    """The `quantization_config` of a tower; CheckpointError for what cannot be read exactly."""
    check_entry(path, "quant_method", data.get("quant_method"), "compressed-tensors")
    check_entry(path, "format", data.get("format"), "int-quantized")
    groups = list((data.get("config_groups") or {}).values())
    check_entry(path, "number of config_groups", len(groups), 1)
    check_entry(path, "targets", groups[0].get("targets"), ["Linear"])
    check_entry(path, "output_activations", groups[0].get("output_activations"), None)
    defaults = {"type": "int", "symmetric": True, "dynamic": False}
    for part, wanted in (("weights", WEIGHTS), ("input_activations", ACTIVATIONS)):
        found = {**defaults, **(groups[0].get(part) or {})}
        for key, value in wanted.items():
            check_entry(path, f"{part}.{key}", found.get(key), value)
    return Int8Config(skipped=tuple(data.get("ignore") or ()))


def write_int8(config: Int8Config) -> dict[str, Any]:
    """The `quantization_config` of a tower's `config.json`."""
    group = {
        "targets": ["Linear"],
        "weights": WEIGHTS,
        "input_activations": ACTIVATIONS,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(config.skipped),
    }


def quantize_linears_int8(root: nn.Module, config: Int8Config) -> None:
    """Put an empty `W8A8Linear` in the place of every linear that the checkpoint holds in int8."""
    linears = [(name, part) for name, part in root.named_modules() if isinstance(part, nn.Linear)]
    for name, linear in linears:
        if matches(config.skipped, name):
            continue
        parent, _, child = name.rpartition(".")
        has_bias = linear.bias is not None
        quantized = W8A8Linear(linear.in_features, linear.out_features, bias=has_bias)
        setattr(root.get_submodule(parent), child, quantized)


def int8_tensors(linear: W8A8Linear) -> dict[str, Tensor]:
    """One linear as a checkpoint stores it; scales stay float32, 16 bits round small ones."""
    return {"weight": linear.weight, "weight_scale": linear.weight_scale.float().unsqueeze(1)}


def int8_specifications(linear: W8A8Linear) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Key -> dtype and shape of what `int8_tensors` gives, without computing it."""
    outputs, inputs = linear.out_features, linear.in_features
    return {
        "weight": (torch.int8, (outputs, inputs)),
        "weight_scale": (torch.float32, (outputs, 1)),
    }


class Int8Reader:
    """Reads the stored tensors of int8 linears; see `quantization.PackedReader`."""

    def __init__(self, root: nn.Module) -> None:
        linears = {
            name: part for name, part in root.named_modules() if isinstance(part, W8A8Linear)
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, linear in linears.items():
            self.shapes[f"{name}.weight"] = (linear.out_features, linear.in_features)
            self.shapes[f"{name}.weight_scale"] = (linear.out_features, 1)
        self.replaced = set(self.shapes)

    def add(self, path: Path, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """Take one tensor of `path`; return the module's state that it makes."""
        if key.endswith(".weight_scale"):
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{path}: {key} is {tensor.dtype}; scales are floating-point; "
                    "copy the file again"
                )
            return {key: tensor.float().flatten()}
        if tensor.dtype != torch.int8:
            raise CheckpointError(
                f"{path}: {key} is {tensor.dtype}, config.json says int8; "
                "the weights and the config are not of one checkpoint"
            )
        return {key: tensor}

# SPDX-License-Identifier: Apache-2.0
"""Int4 decoders: which linears are packed, under which keys, and their way into `W4A16Linear`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels import packing
from nvila_ros.kernels.packing import CODES_PER_WORD, Int4Weight
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models.config import QuantizationConfig
from nvila_ros.models.memory import empty_on

GROUP_SIZE = 128
AWQ_LAYOUTS = {"gemm": "awq_gemm", "gemv": "awq_gemv"}


def read_quantization(data: dict[str, Any], path: Path) -> QuantizationConfig:
    """The `quantization_config` of `path`; CheckpointError for what cannot be read exactly."""
    method = data.get("quant_method") or ("awq" if "w_bit" in data else None)
    if method == "awq":
        return _read_awq(data, path)
    if method == "compressed-tensors":
        return _read_compressed(data, path)
    raise CheckpointError(
        f"{path}: weights are quantized by {method or 'an unnamed method'}; 'awq' and "
        "'compressed-tensors' are supported; use one of these or the float checkpoint"
    )


def check_entry(path: Path, key: str, got: Any, *expected: Any) -> None:
    """Raise CheckpointError unless a setting is one of those that can be read exactly."""
    if got not in expected:
        wanted = " or ".join(repr(value) for value in expected)
        raise CheckpointError(
            f"{path}: quantization {key} is {got!r}; {wanted} is supported; "
            "quantize the float checkpoint again, or use it as it is"
        )


def _read_awq(data: dict[str, Any], path: Path) -> QuantizationConfig:
    """AutoAWQ, in the words of Hugging Face or in its own (w_bit, q_group_size)."""
    version = str(data.get("version", "gemm")).lower()
    check_entry(path, "bits", data.get("bits", data.get("w_bit")), 4)
    check_entry(path, "group_size", data.get("group_size", data.get("q_group_size")), GROUP_SIZE)
    check_entry(path, "zero_point", data.get("zero_point", True), True)
    check_entry(path, "version", version, *AWQ_LAYOUTS)
    skipped = data.get("modules_to_not_convert") or ()
    return QuantizationConfig(layout=AWQ_LAYOUTS[version], skipped=tuple(skipped))


def _read_compressed(data: dict[str, Any], path: Path) -> QuantizationConfig:
    """compressed-tensors in its packed int4 form, one scheme for all linears."""
    groups = list((data.get("config_groups") or {}).values())
    check_entry(path, "number of config_groups", len(groups), 1)
    weights = groups[0].get("weights") or {}
    check_entry(path, "format", data.get("format"), "pack-quantized")
    check_entry(path, "targets", groups[0].get("targets"), ["Linear"])
    for key in ("input_activations", "output_activations"):
        check_entry(path, key, groups[0].get(key), None)
    check_entry(path, "num_bits", weights.get("num_bits"), 4)
    check_entry(path, "type", weights.get("type", "int"), "int")
    check_entry(path, "strategy", weights.get("strategy"), "group")
    check_entry(path, "group_size", weights.get("group_size"), GROUP_SIZE)
    check_entry(path, "actorder", weights.get("actorder"), None, False, "weight", "static")
    return QuantizationConfig(
        layout="compressed",
        is_symmetric=bool(weights.get("symmetric", True)),
        skipped=tuple(data.get("ignore") or ()),
    )


def write_quantization(config: QuantizationConfig) -> dict[str, Any]:
    """The `quantization_config` of what `packed_tensors` writes."""
    if config.layout != "compressed":
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": config.group_size,
            "modules_to_not_convert": list(config.skipped) or None,
            "version": "gemm",
            "zero_point": True,
        }
    weights = {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": config.group_size,
        "symmetric": config.is_symmetric,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(config.skipped),
    }


def is_skipped(config: QuantizationConfig, name: str) -> bool:
    """Whether a linear stays float: AutoAWQ lists parts of names, the other names or `re:...`."""
    if config.layout != "compressed":
        return name == "lm_head" or any(part in name for part in config.skipped)
    return matches(config.skipped, name)


def matches(entries: Iterable[str], name: str) -> bool:
    """Whether compressed-tensors' list of names and `re:...` patterns holds a module."""
    return any(
        re.match(entry[3:], name) is not None if entry.startswith("re:") else entry == name
        for entry in entries
    )


def quantize_linears(root: nn.Module, config: QuantizationConfig) -> None:
    """Put an empty `W4A16Linear` in the place of every linear that the checkpoint packs."""
    linears = [(name, part) for name, part in root.named_modules() if isinstance(part, nn.Linear)]
    for name, linear in linears:
        if is_skipped(config, name):
            continue
        if linear.in_features % config.group_size or linear.out_features % CODES_PER_WORD:
            raise CheckpointError(
                f"{name} has {linear.in_features} inputs and {linear.out_features} outputs; "
                f"int4 needs multiples of {config.group_size} and {CODES_PER_WORD}; "
                "use the float checkpoint"
            )
        parent, _, child = name.rpartition(".")
        packed = W4A16Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            group_size=config.group_size,
        )
        setattr(root.get_submodule(parent), child, packed)


def stored_shapes(config: QuantizationConfig, linear: W4A16Linear) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the tensors that a checkpoint holds for one linear, without its bias."""
    outputs, inputs, groups = linear.out_features, linear.in_features, linear.zeros.shape[1]
    words = inputs // CODES_PER_WORD
    if config.layout == "awq_gemm":
        width = outputs // CODES_PER_WORD
        return {"qweight": (inputs, width), "qzeros": (groups, width), "scales": (groups, outputs)}
    if config.layout == "awq_gemv":
        width = -(-groups // CODES_PER_WORD)
        return {
            "qweight": (outputs, words),
            "qzeros": (outputs, width),
            "scales": (outputs, width * CODES_PER_WORD),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "weight_packed": (outputs, words),
        "weight_scale": (outputs, groups),
        "weight_shape": (2,),
    }
    if not config.is_symmetric:
        shapes["weight_zero_point"] = (-(-outputs // CODES_PER_WORD), groups)
    return shapes


def _convert(config: QuantizationConfig, stored: dict[str, Tensor], num_groups: int) -> Int4Weight:
    """The stored tensors of one linear -> the form in which it computes."""
    if config.layout == "awq_gemm":
        inputs, width = stored["qweight"].shape
        shape = (width * CODES_PER_WORD, inputs // CODES_PER_WORD)
        words = empty_on(stored["qweight"].device, shape, torch.int32)
        return packing.from_awq_gemm(stored["qweight"], stored["qzeros"], stored["scales"], words)
    if config.layout == "awq_gemv":
        return packing.from_awq_gemv(
            stored["qweight"], stored["qzeros"], stored["scales"], num_groups
        )
    return packing.from_compressed(
        stored["weight_packed"], stored["weight_scale"], stored.get("weight_zero_point")
    )


def packed_tensors(config: QuantizationConfig, linear: W4A16Linear) -> dict[str, Tensor]:
    """One linear as a checkpoint stores it: AutoAWQ's GEMM form, or compressed-tensors'."""
    weight = linear.int4_weight
    if config.layout != "compressed":
        return dict(zip(("qweight", "qzeros", "scales"), packing.to_awq_gemm(weight), strict=True))
    shape = linear.qweight.new_tensor((linear.out_features, linear.in_features)).long()
    stored = {"weight_packed": weight.qweight, "weight_scale": weight.scales, "weight_shape": shape}
    if not config.is_symmetric:
        stored["weight_zero_point"] = packing.pack(weight.zeros.t()).t().contiguous()
    return stored


def packed_specifications(
    config: QuantizationConfig, linear: W4A16Linear
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Key -> dtype and shape of what `packed_tensors` gives, without computing it."""
    if config.layout != "compressed":
        config = replace(config, layout="awq_gemm")
    dtypes = {
        "scales": linear.scales.dtype,
        "weight_scale": linear.scales.dtype,
        "weight_shape": torch.int64,
    }
    return {
        key: (dtypes.get(key, torch.int32), shape)
        for key, shape in stored_shapes(config, linear).items()
    }


def _check_tensor(path: Path, key: str, tensor: Tensor, linear: W4A16Linear) -> None:
    """Raise CheckpointError for a stored tensor that cannot be what its key says."""
    if key.endswith(".weight_shape"):
        expected = [linear.out_features, linear.in_features]
        if tensor.tolist() != expected:
            raise CheckpointError(
                f"{path}: {key} is {tensor.tolist()}, config.json asks for {expected}; "
                "the weights and the config are not of one checkpoint"
            )
    elif key.endswith((".scales", ".weight_scale")):
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {key} is {tensor.dtype}; scales are floating-point; copy the file again"
            )
    elif tensor.dtype != torch.int32:
        raise CheckpointError(
            f"{path}: {key} is {tensor.dtype}; packed codes are torch.int32; copy the file again"
        )


class PackedReader:
    """Gathers the stored tensors of each int4 linear, of which shards may hold one each.

    A linear is converted as soon as it is complete, so that never more than one is unpacked.
    `shapes` are the keys on disk, `replaced` the module's own keys, which no file has.
    """

    def __init__(self, root: nn.Module, config: QuantizationConfig | None) -> None:
        self._config = config
        self._linears = {
            name: part for name, part in root.named_modules() if isinstance(part, W4A16Linear)
        }
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self.shapes = {
            f"{name}.{key}": shape
            for name, linear in self._linears.items()
            if config is not None
            for key, shape in stored_shapes(config, linear).items()
        }
        self.replaced = {
            f"{name}.{key}" for name in self._linears for key in ("qweight", "zeros", "scales")
        }

    def add(self, path: Path, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """Take one tensor of `path`; return a linear's state when this one completes it."""
        assert self._config is not None
        name, _, suffix = key.rpartition(".")
        stored, linear = self._waiting.setdefault(name, {}), self._linears[name]
        _check_tensor(path, key, tensor, linear)
        stored[suffix] = tensor
        if len(stored) < len(stored_shapes(self._config, linear)):
            return {}
        weight = _convert(self._config, self._waiting.pop(name), linear.zeros.shape[1])
        return {
            f"{name}.qweight": weight.qweight,
            f"{name}.zeros": weight.zeros,
            f"{name}.scales": weight.scales,
        }

# SPDX-License-Identifier: Apache-2.0
"""Linears of an int8 tower that stay in floats: where one rounding for all frames costs most."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from torch import nn

from nvila_ros.errors import ConfigError
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.vision import VisionLayer

KINDS = ("qkv", "out_proj", "fc1", "fc2")
NONE = "none"
# Modules of a layer that a kind is, and the norm in front whose scales went into their weights.
_MODULES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "layer_norm1"),
    "out_proj": ("self_attn.out_proj",),
    "fc1": ("mlp.fc1", "layer_norm2"),
    "fc2": ("mlp.fc2",),
}


def float_names(text: str, num_layers: int) -> tuple[str, ...]:
    """'0.fc1,fc2' -> layers.0.fc1, layers.0.fc2, layers.1.fc2 ...: of one layer, or of each.

    'none' is no linear. ConfigError for a kind or layer that the tower does not have, and where
    no linear would be left in int8.
    """
    names: set[tuple[int, str]] = set()
    for word in () if text == NONE else text.split(","):
        number, _, kind = word.strip().rpartition(".")
        if kind not in KINDS or (number and not (number.isdigit() and int(number) < num_layers)):
            raise ConfigError(
                f"float layers are {text!r}; expected {NONE}, or kinds of {', '.join(KINDS)} by "
                f"commas, each alone or of one layer of 0 to {num_layers - 1}, such as 0.fc1,fc2"
            )
        layers = [int(number)] if number else range(num_layers)
        names.update((layer, kind) for layer in layers)
    if len(names) == num_layers * len(KINDS):
        raise ConfigError(
            f"float layers {text!r} leave nothing in int8; take --precision fp16 or fp32"
        )
    ordered = sorted(names, key=lambda name: (name[0], KINDS.index(name[1])))
    return tuple(f"layers.{layer}.{kind}" for layer, kind in ordered)


def keep_floats(network: Nvila, names: Collection[str], source: Nvila | None = None) -> None:
    """Puts float linears where the int8 ones of these names are, in place.

    With `source`, the float network that was quantized, they and the norm before them are its
    own; without, they are the floats that the int8 weights stand for.
    """
    layers = network.vision_tower.vision_model.encoder.layers
    for name in names:
        _, number, kind = name.split(".")
        layer = cast(VisionLayer, layers[int(number)])
        original = source and source.vision_tower.vision_model.encoder.layers[int(number)]
        for path in _MODULES[kind]:
            parent, _, child = path.rpartition(".")
            if original is not None:
                setattr(layer.get_submodule(parent), child, original.get_submodule(path))
            elif isinstance(layer.get_submodule(path), W8A8Linear):
                quantized = cast(W8A8Linear, layer.get_submodule(path))
                setattr(layer.get_submodule(parent), child, _dense(quantized))


def _dense(quantized: W8A8Linear) -> nn.Linear:
    weight = quantized.dequantized()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=quantized.bias is not None)
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    if quantized.bias is not None:
        linear.bias = nn.Parameter(quantized.bias.detach().float(), requires_grad=False)
    return linear


def float_text(network: Nvila) -> str:
    """What `float_names` reads to name the linears of this tower that are floats: 0.fc1,0.fc2."""
    layers = network.vision_tower.vision_model.encoder.layers[: network.config.num_vision_layers]
    names = [
        f"{number}.{kind}"
        for number, layer in enumerate(layers)
        for kind in KINDS
        if not isinstance(layer.get_submodule(_MODULES[kind][0]), W8A8Linear)
    ]
    return ",".join(names) or NONE

# SPDX-License-Identifier: Apache-2.0
"""The tower and projector as one ONNX graph: normalised frames in, features for the decoder out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from nvila_ros.errors import ExportError
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.onnx_graph import OnnxGraph, Rounding, attention_scale
from nvila_ros.models.projector import SpaceToChannel
from nvila_ros.models.vision import VisionAttention, VisionLayer

INPUT, OUTPUT = "pixels", "features"
FRAMES = "frames"  # the axis that varies

Roundings = Mapping[str, Rounding]  # of each int8 linear's activations, by its name in the tower


def vision_graph(
    model: Nvila, float_type: torch.dtype, scales: Roundings | None = None
) -> OnnxGraph:
    """pixels (F, 3, S, S) in [-1, 1] -> features (F, T, D), any F.

    With `scales`, linears of the tower that the checkpoint holds in int8 are int8 products;
    activations are quantized with these, which are constants (one per linear), where our own
    kernels take a scale per token. Without, int8 weights are written out as floats.
    """
    config = model.config
    vision = config.vision
    graph = OnnxGraph("nvila_vision", float_type)
    side = vision.image_size
    pixels = graph.input(INPUT, [FRAMES, vision.num_channels, side, side])
    hidden = _embeddings(graph, model, pixels)
    writer = _LayerWriter(graph, vision.num_attention_heads, scales)
    layers = model.vision_tower.vision_model.encoder.layers[: config.num_vision_layers]
    for number, layer in enumerate(layers):
        hidden = writer.layer(hidden, cast(VisionLayer, layer), f"layers.{number}.")
    if config.num_scales > 1:
        hidden = graph.node("Concat", [hidden] * config.num_scales, axis=-1)
    hidden = _projector(graph, model, hidden)
    graph.output(hidden, OUTPUT, [FRAMES, config.tokens_per_frame, config.language.hidden_size])
    return graph


def layer_linears(layer: nn.Module) -> dict[str, nn.Module]:
    """Linears of one layer by the name under which activation scales are known.

    Queries, keys and values read the same activations and are one product.
    """
    layer = cast(VisionLayer, layer)
    return {
        "qkv": layer.self_attn.q_proj,
        "out_proj": layer.self_attn.out_proj,
        "fc1": layer.mlp.fc1,
        "fc2": layer.mlp.fc2,
    }


def _embeddings(graph: OnnxGraph, model: Nvila, pixels: str) -> str:
    embeddings = model.vision_tower.vision_model.embeddings
    convolution = embeddings.patch_embedding
    size = model.config.vision.patch_size
    weight = graph.floats("patch_embedding.weight", convolution.weight)
    assert convolution.bias is not None
    bias = graph.floats("patch_embedding.bias", convolution.bias)
    grid = graph.node(
        "Conv", [pixels, weight, bias], kernel_shape=[size, size], strides=[size, size]
    )
    width, num_patches = model.config.vision.hidden_size, model.config.vision.grid_side**2
    patches = graph.transpose(graph.reshape(grid, [0, width, num_patches]), [0, 2, 1])
    positions = graph.floats("position_embedding", embeddings.position_embedding.weight)
    return graph.node("Add", [patches, positions])


class _LayerWriter:
    """Writes layers of the tower one after the other."""

    def __init__(self, graph: OnnxGraph, num_heads: int, scales: Roundings | None) -> None:
        self._graph, self._num_heads, self._scales = graph, num_heads, scales

    def layer(self, hidden: str, layer: VisionLayer, name: str) -> str:
        """(F, P, D) -> (F, P, D)."""
        graph, mlp = self._graph, layer.mlp
        normed = graph.layer_norm(hidden, f"{name}layer_norm1", layer.layer_norm1)
        mixed = self._attention(normed, layer.self_attn, name)
        out = self._linear(mixed, f"{name}out_proj", [layer.self_attn.out_proj])
        hidden = graph.node("Add", [hidden, out])
        normed = graph.layer_norm(hidden, f"{name}layer_norm2", layer.layer_norm2)
        inner = self._linear(normed, f"{name}fc1", [mlp.fc1])
        inner = graph.node("Gelu", [inner], approximate=mlp.approximate)
        return graph.node("Add", [hidden, self._linear(inner, f"{name}fc2", [mlp.fc2])])

    def _attention(self, normed: str, attention: VisionAttention, name: str) -> str:
        """Everything between the norm and the output product."""
        graph, heads = self._graph, self._num_heads
        parts: list[nn.Module] = [attention.q_proj, attention.k_proj, attention.v_proj]
        joined = self._linear(normed, f"{name}qkv", parts)
        width = _dense(parts[0]).shape[0]
        head_width = width // heads
        # (F, P, 3 D) -> (3, F, heads, P, head width)
        stacked = graph.reshape(joined, [0, 0, 3, heads, head_width])
        stacked = graph.transpose(stacked, [2, 0, 3, 1, 4])
        query, key, value = (
            graph.node("Gather", [stacked, graph.integers_scalar(f"index_{place}", place)], axis=0)
            for place in range(3)
        )
        query = graph.node("Mul", [query, graph.floats("head_scale", attention_scale(head_width))])
        scores = graph.node("MatMul", [query, graph.transpose(key, [0, 1, 3, 2])])
        mixed = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
        return graph.reshape(graph.transpose(mixed, [0, 2, 1, 3]), [0, 0, width])

    def _linear(self, value: str, name: str, linears: list[nn.Module]) -> str:
        """One product for linears that read the same activations."""
        biases = [linear.bias for linear in linears]
        bias = torch.cat([cast(Tensor, each).float() for each in biases])
        if self._scales is None or not all(isinstance(each, W8A8Linear) for each in linears):
            weight = torch.cat([_dense(each) for each in linears])
            return self._graph.linear(value, name, weight, bias)
        if name not in self._scales:
            raise ExportError(f"there is no activation scale for {name}; calibrate the whole tower")
        quantized = cast("list[W8A8Linear]", linears)
        codes = torch.cat([each.weight for each in quantized])
        steps = torch.cat([each.weight_scale for each in quantized])
        return self._graph.int8_linear(value, name, (codes, steps), bias, self._scales[name])


def _dense(linear: nn.Module) -> Tensor:
    """A linear's weight (N, K) as floats."""
    if isinstance(linear, W8A8Linear):
        return linear.dequantized()
    return cast(nn.Linear, linear).weight.detach().float()


def _projector(graph: OnnxGraph, model: Nvila, hidden: str) -> str:
    """Blocks of patches into channels; norms, linears and GELUs as the checkpoint has them."""
    for index, module in enumerate(model.mm_projector.layers):
        name = f"projector.{index}"
        if isinstance(module, SpaceToChannel):
            hidden = _fold(graph, hidden, module.rate, model)
        elif isinstance(module, nn.LayerNorm):
            hidden = graph.layer_norm(hidden, name, module)
        elif isinstance(module, nn.Linear):
            hidden = graph.linear(hidden, name, module.weight, module.bias)
        elif isinstance(module, nn.GELU):
            hidden = graph.node("Gelu", [hidden], approximate=module.approximate)
        else:
            raise ExportError(
                f"the projector's layer {index} is a {type(module).__name__}, which has no form "
                "in ONNX here; use --part language, or the torch backend"
            )
    return hidden


def _fold(graph: OnnxGraph, hidden: str, rate: int, model: Nvila) -> str:
    """See `SpaceToChannel`: (F, P, C) -> (F, T, rate * rate * C), zeros at the bottom and right."""
    side, channels = model.config.vision.grid_side, model.config.mm_hidden_size
    missing = -side % rate
    tokens = (side + missing) // rate
    grid = graph.reshape(hidden, [0, side, side, channels])
    if missing:
        pads = graph.integers("fold_pads", [0, 0, 0, 0, 0, missing, missing, 0])
        grid = graph.node("Pad", [grid, pads], mode="constant")
    blocks = graph.reshape(grid, [0, tokens, rate, tokens, rate * channels])
    blocks = graph.transpose(blocks, [0, 1, 3, 2, 4])
    return graph.reshape(blocks, [0, tokens * tokens, rate * rate * channels])

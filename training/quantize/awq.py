# SPDX-License-Identifier: Apache-2.0
"""AWQ for one decoder layer: scales that protect what the activations use, then clipped groups.

After Lin et al., arXiv 2306.00978. A channel of a linear's input that is large on average gets
more of the code's range: its weights are multiplied by s and the input is divided by s, which is
folded into whatever made it, so the float function stays what it was. What the rounding of a
column leaves over goes to the columns after it (Frantar et al., arXiv 2210.17323).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.kernels.packing import Int4Weight
from nvila_ros.models.language import LanguageLayer
from nvila_ros.training.quantize.rounding import (
    best_ranges,
    compensated,
    group_ranges,
    inverse_factor,
    rounded,
    to_int4,
)
from nvila_ros.training.quantize.statistics import Recorder

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT, GATE, UP, DOWN = "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
LINEARS = (*ATTENTION, OUTPUT, GATE, UP, DOWN)
WATCHED = (ATTENTION[0], OUTPUT, GATE, DOWN)  # q, k, v share their input, gate and up too
INPUT_OF = dict(zip(LINEARS, (*(ATTENTION[0],) * 3, OUTPUT, GATE, GATE, DOWN), strict=True))
UNCLIPPED = ATTENTION[:2]  # queries meet keys in a product: their outputs' errors do not add up
NUM_RATIOS = 20
SMALLEST = 1e-4

Rotary = tuple[Tensor, Tensor]


@dataclass
class LayerScales:
    """Divisors of the inputs of a layer's linears (K,); ones leave a linear as it is."""

    attention: Tensor
    output: Tensor  # one per key-value channel, shared by the query heads that read it
    mlp: Tensor
    down: Tensor
    ratios: dict[str, float] = field(default_factory=dict)

    @classmethod
    def ones(cls, layer: LanguageLayer) -> LayerScales:
        """Scales that change nothing."""
        widths = (
            layer.self_attn.q_proj.in_features,
            layer.self_attn.v_proj.out_features,
            layer.mlp.gate_proj.in_features,
            layer.mlp.down_proj.in_features,
        )
        device = layer.input_layernorm.weight.device
        first, second, third, fourth = (torch.ones(width, device=device) for width in widths)
        return cls(first, second, third, fourth)


def fold(layer: LanguageLayer, scales: LayerScales) -> None:
    """Multiply columns by their scale and divide what makes them by it; the function stays."""
    attention, mlp = layer.self_attn, layer.mlp
    with torch.no_grad():
        layer.input_layernorm.weight.div_(scales.attention)
        for name in ATTENTION:
            linear_of(layer, name).weight.mul_(scales.attention)
        attention.v_proj.weight.div_(scales.output[:, None])
        if attention.v_proj.bias is not None:
            attention.v_proj.bias.div_(scales.output)
        attention.o_proj.weight.mul_(over_query_heads(scales.output, layer))
        layer.post_attention_layernorm.weight.div_(scales.mlp)
        mlp.gate_proj.weight.mul_(scales.mlp)
        mlp.up_proj.weight.mul_(scales.mlp).div_(scales.down[:, None])
        mlp.down_proj.weight.mul_(scales.down)


def linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """One of a layer's linears."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, nn.Linear), f"{name} is {type(linear).__name__}"
    return linear


def over_query_heads(values: Tensor, layer: LanguageLayer) -> Tensor:
    """(key-value heads * width,) -> (query heads * width,): a copy for each head that shares."""
    width = layer.self_attn.head_dim
    repeats = layer.self_attn.o_proj.in_features // values.numel()
    return values.unflatten(0, (-1, width)).repeat_interleave(repeats, dim=0).flatten()


def over_key_heads(values: Tensor, layer: LanguageLayer) -> Tensor:
    """(query heads * width,) -> (key-value heads * width,): the mean over the heads that share."""
    width = layer.self_attn.head_dim
    repeats = values.numel() // layer.self_attn.v_proj.out_features
    return values.unflatten(0, (-1, repeats, width)).mean(1).flatten()


def candidate_scales(magnitude: Tensor, importance: Tensor, ratio: float) -> Tensor:
    """s = x^r / w^(1 - r), brought to a geometric middle of one; all (K,)."""
    scales = magnitude**ratio / (importance ** (1 - ratio) + SMALLEST)
    scales = scales.clamp(min=SMALLEST)
    return scales / (scales.max() * scales.min()).sqrt()


def weight_importance(weights: Sequence[Tensor]) -> Tensor:
    """(N, K) each -> (K,): mean over the outputs of |w| relative to the largest in its group."""
    groups = torch.cat(list(weights)).abs().unflatten(1, (-1, 128))
    return (groups / (groups.amax(-1, keepdim=True) + 1e-6)).flatten(1).mean(0)


@contextlib.contextmanager
def replaced(linears: Sequence[nn.Linear], weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the linears have other weights."""
    originals = [linear.weight.data for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = weight
        yield
    finally:
        for linear, weight in zip(linears, originals, strict=True):
            linear.weight.data = weight


def search(
    linears: Sequence[nn.Linear],
    magnitude: Tensor,
    answer: Callable[[], Tensor],
    spread: Callable[[Tensor], Tensor] = lambda scales: scales,
    gather: Callable[[Tensor], Tensor] = lambda values: values,
) -> tuple[Tensor, float]:
    """The scales whose rounded weights bring `answer` closest to the float one, and their ratio.

    `gather` and `spread` tie channels that must have one scale together. Ratio -1: no scaling.
    """
    expected = answer()
    weights = [linear.weight.data for linear in linears]
    magnitude, importance = gather(magnitude), gather(weight_importance(weights))
    best = (torch.inf, torch.ones_like(magnitude), -1.0)
    for step in range(-1, NUM_RATIOS):
        ratio = step / NUM_RATIOS if step >= 0 else -1.0
        scales = (
            torch.ones_like(magnitude)
            if step < 0
            else candidate_scales(magnitude, importance, ratio)
        )
        if not bool(scales.isfinite().all()):
            continue
        columns = spread(scales)
        tried = [rounded(weight * columns).div_(columns) for weight in weights]
        with replaced(linears, tried):
            loss = float((answer() - expected).square_().mean())
        if loss < best[0]:
            best = (loss, scales, ratio)
    return best[1], best[2]


def search_layer(layer: LanguageLayer, recorder: Recorder, rotary: Rotary) -> LayerScales:
    """The four scales of a layer, each judged by the block that its linears are part of."""
    kept = recorder.kept

    def magnitude(name: str) -> Tensor:
        return recorder.statistics[name].mean_magnitude

    def linear(name: str) -> Callable[[], Tensor]:
        rows = torch.cat([inputs.flatten(0, -2) for inputs in kept[name]])
        return lambda: linear_of(layer, name)(rows)

    def attention() -> Tensor:
        outputs = [
            layer.self_attn(inputs, _first(rotary, inputs.shape[1]), None, None)
            for inputs in kept[ATTENTION[0]]
        ]
        return torch.cat([output.flatten(0, -2) for output in outputs])

    def mlp() -> Tensor:
        return layer.mlp(torch.cat([inputs.flatten(0, -2) for inputs in kept[GATE]]))

    ratios = {}
    modules = [linear_of(layer, name) for name in ATTENTION]
    first, ratios["attention"] = search(modules, magnitude(ATTENTION[0]), attention)
    second, ratios["output"] = search(
        [layer.self_attn.o_proj],
        magnitude(OUTPUT),
        linear(OUTPUT),
        spread=lambda scales: over_query_heads(scales, layer),
        gather=lambda values: over_key_heads(values, layer),
    )
    both = [layer.mlp.gate_proj, layer.mlp.up_proj]
    third, ratios["mlp"] = search(both, magnitude(GATE), mlp)
    fourth, ratios["down"] = search([layer.mlp.down_proj], magnitude(DOWN), linear(DOWN))
    return LayerScales(first, second, third, fourth, ratios)


def _first(rotary: Rotary, length: int) -> Rotary:
    return rotary[0][:length], rotary[1][:length]


@dataclass(frozen=True)
class PackedLayer:
    """What a layer became: codes per linear, a report, and for comparison AWQ without feedback."""

    codes: dict[str, Int4Weight]
    report: dict[str, Any]
    without_feedback: dict[str, Int4Weight]


def quantize_layer(layer: LanguageLayer, recorder: Recorder, rotary: Rotary) -> PackedLayer:
    """The layer is left folded, its linears still float."""
    original = {name: linear_of(layer, name).weight.data.clone() for name in LINEARS}
    scales = search_layer(layer, recorder, rotary)
    fold(layer, scales)
    columns = {
        ATTENTION[0]: scales.attention,
        OUTPUT: over_query_heads(scales.output, layer),
        GATE: scales.mlp,
        DOWN: scales.down,
    }
    rows_of = {ATTENTION[2]: scales.output, UP: scales.down}
    codes, without, errors = {}, {}, {}
    for source in WATCHED:
        divisor, statistics = columns[source], recorder.statistics[source]
        full = statistics.full_gram(divisor)
        factor = None if full is None else inverse_factor(full)
        inputs = torch.cat([inputs.flatten(0, -2) for inputs in recorder.kept[source]])
        for name in (name for name in LINEARS if INPUT_OF[name] == source):
            weight = linear_of(layer, name).weight.data
            gram = None if name in UNCLIPPED else statistics.gram(divisor)
            low, high = group_ranges(weight) if gram is None else best_ranges(weight, gram)
            found = {"awq": rounded(weight, low, high)}
            codes[name] = without[name] = to_int4(weight, low, high)
            if factor is not None:
                found["feedback"], low, high = compensated(weight, factor, gram)
                codes[name] = to_int4(found["feedback"], low, high)
            back = rows_of.get(name, torch.ones_like(weight[:, 0]))[:, None] / divisor
            found = {key: value * back for key, value in found.items()}
            found["round_to_nearest"] = rounded(original[name])
            errors[name] = {
                key: relative_error(inputs, original[name], value) for key, value in found.items()
            }
    largest = {name: float(recorder.statistics[name].largest.max()) for name in WATCHED}
    report = {"linears": errors, "ratios": scales.ratios, "largest_inputs": largest}
    return PackedLayer(codes, report, without)


def relative_error(rows: Tensor, weight: Tensor, changed: Tensor) -> float:
    """|| X (W' - W)^T ||^2 / || X W^T ||^2 over the kept rows X."""
    difference = (rows @ (changed - weight).t()).square().mean()
    return float(difference / (rows @ weight.t()).square().mean().clamp(min=1e-30))

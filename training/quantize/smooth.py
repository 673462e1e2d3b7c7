# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant for one tower layer: outliers of the activations move into the weights.

After Xiao et al., arXiv 2211.10438: s = max|x|^a / max|w|^(1 - a) per channel; the LayerNorm
before the linears is divided by s, their columns are multiplied by it. NVILA's deployment takes
a = 0.3 everywhere; here a is searched per norm, and 0.3 stays where nothing is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.vision import VisionLayer
from nvila_ros.training.quantize.awq import linear_of
from nvila_ros.training.quantize.rounding import w8a8
from nvila_ros.training.quantize.statistics import Recorder

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT, FIRST, SECOND = "self_attn.out_proj", "mlp.fc1", "mlp.fc2"
LINEARS = (*ATTENTION, OUTPUT, FIRST, SECOND)
WATCHED = (ATTENTION[0], OUTPUT, FIRST, SECOND)
INPUT_OF = dict(zip(LINEARS, (*(ATTENTION[0],) * 3, OUTPUT, FIRST, SECOND), strict=True))
FOLDS = (("layer_norm1", ATTENTION), ("layer_norm2", (FIRST,)))
START = 0.3
ALPHAS = (START, 0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SMALLEST = 1e-5


def smoothing_scales(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """(K,) max |x| and weights (N, K) -> (K,) divisors of the inputs, geometric mean one."""
    columns = torch.cat(list(weights)).abs().amax(0).clamp(min=SMALLEST)
    scales = largest.clamp(min=SMALLEST) ** alpha / columns ** (1 - alpha)
    return scales / scales.log().mean().exp()


def norm_of(layer: VisionLayer, name: str) -> nn.LayerNorm:
    """One of a layer's two norms."""
    norm = layer.get_submodule(name)
    assert isinstance(norm, nn.LayerNorm), f"{name} is {type(norm).__name__}"
    return norm


def fold(layer: VisionLayer, norm: str, linears: Sequence[str], scales: Tensor) -> None:
    """Divide a LayerNorm by the scales and multiply the columns after it; the function stays."""
    with torch.no_grad():
        norm_of(layer, norm).weight.div_(scales)
        norm_of(layer, norm).bias.div_(scales)
        for name in linears:
            linear_of(layer, name).weight.mul_(scales)


def smooth_layer(layer: VisionLayer, recorder: Recorder) -> dict[str, float | None]:
    """Fold the best smoothing into both norms; returns alpha per norm, None: better without."""
    alphas: dict[str, float | None] = {}
    for norm, names in FOLDS:
        inputs = torch.cat([rows.flatten(0, -2) for rows in recorder.kept[names[0]]])
        largest = recorder.statistics[names[0]].largest
        weights = [linear_of(layer, name).weight.data for name in names]
        best: tuple[float, float | None, Tensor] | None = None
        for alpha in (*ALPHAS, None):
            scales = (
                torch.ones_like(largest)
                if alpha is None
                else smoothing_scales(largest, weights, alpha)
            )
            loss = sum(int8_error(inputs / scales, weight * scales) for weight in weights)
            if best is None or loss < best[0]:
                best = (loss, alpha, scales)
        assert best is not None
        alphas[norm] = best[1]
        fold(layer, norm, names, best[2])
    return alphas


def int8_error(inputs: Tensor, weight: Tensor) -> float:
    """Relative squared error of int8 arithmetic for (rows, K) inputs and (N, K) weights."""
    expected = inputs @ weight.t()
    difference = w8a8(inputs, weight, None) - expected
    return float(difference.square().mean() / expected.square().mean().clamp(min=1e-30))


def quantize_layer(
    layer: VisionLayer, recorder: Recorder | None
) -> tuple[dict[str, W8A8Linear], dict[str, Any]]:
    """Int8 linears and a report; without inputs (a layer that never runs) they are only rounded."""
    report: dict[str, Any] = {"linears": {}}
    if recorder is not None:
        rows = {
            name: torch.cat([inputs.flatten(0, -2) for inputs in recorder.kept[name]])
            for name in WATCHED
        }
        plain = _errors(layer, rows)
        before = {norm: norm_of(layer, norm).weight.data.clone() for norm, _ in FOLDS}
        report["alphas"] = smooth_layer(layer, recorder)
        for norm, names in FOLDS:
            after = norm_of(layer, norm).weight.data
            rows[names[0]] = rows[names[0]] * _ratio(after, before[norm])
        smooth = _errors(layer, rows)
        report["linears"] = {
            name: {"round_to_nearest": plain[name], "smoothquant": smooth[name]} for name in LINEARS
        }
    packed = {}
    for name in LINEARS:
        packed[name] = W8A8Linear.from_linear(linear_of(layer, name))
    return packed, report


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return torch.where(before == 0, torch.ones_like(after), after / before)


def _errors(layer: VisionLayer, rows: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: int8_error(rows[INPUT_OF[name]], linear_of(layer, name).weight.data)
        for name in LINEARS
    }

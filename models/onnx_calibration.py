# SPDX-License-Identifier: Apache-2.0
"""One rounding per linear for its activations, from calibration frames: what static int8 needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nvila_ros.errors import ExportError
from nvila_ros.kernels.reference import INT8_LIMIT
from nvila_ros.kernels.w8a8 import W8A8Linear
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.onnx_graph import Rounding
from nvila_ros.models.onnx_vision import layer_linears

KEPT_ROWS = 4096  # per linear: what a scale is chosen on
FRAMES_PER_PASS = 8
SMALLEST = 1e-8
# Shares of the largest value at which activations are cut off.
CUTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.12, 0.09, 0.06)


@torch.inference_mode()
def calibrate(model: Nvila, frames: Sequence[Tensor]) -> dict[str, Rounding]:
    """(3, S, S) frames in [-1, 1] -> how each int8 linear of the tower rounds, by name.

    Linears of the tower that are floats are left out: they will be floats in the graph.

    The rounding is the one with the least error of what the linear gives out, as far as single
    channels tell: sum over channels k of |W[:, k]|^2 E (x[k] - round(x[k]))^2.
    """
    if not frames:
        raise ExportError("there are no calibration frames; give --calibration seeds or a folder")
    layers = model.vision_tower.vision_model.encoder.layers[: model.config.num_vision_layers]
    linears = {
        f"layers.{number}.{name}": linear
        for number, layer in enumerate(layers)
        for name, linear in layer_linears(layer).items()
        if isinstance(linear, W8A8Linear)  # what stays in floats rounds nothing
    }
    place = model.vision_tower.vision_model.embeddings.position_embedding.weight
    samples = {name: _Sample(len(frames) * model.config.vision.grid_side**2) for name in linears}
    with _watching(linears, samples):
        for begin in range(0, len(frames), FRAMES_PER_PASS):
            pixels = torch.stack(list(frames[begin : begin + FRAMES_PER_PASS]))
            model.vision_tower(pixels.to(place.device, place.dtype))
    return {name: best_rounding(samples[name].rows, _importance(linears[name])) for name in linears}


def best_rounding(rows: Tensor, importance: Tensor) -> Rounding:
    """(M, K) activations and (K,) weights of their errors -> the rounding with the least error.

    Around zero, and around the middle of the range: a GELU gives out -0.17 and more, so that half
    of the codes around zero would stand for nothing.
    """
    lowest, highest = float(rows.min()), float(rows.max())
    if not max(-lowest, highest) < float("inf"):
        raise ExportError(
            f"activations of the calibration frames reach from {lowest:g} to {highest:g}, which is "
            "not finite; give other frames, or see whether the checkpoint's weights are finite"
        )
    best, least = Rounding(SMALLEST), float("inf")
    for cut in CUTS:
        reach = cut * max(-lowest, highest)
        low, high = max(lowest, -reach), min(highest, reach)
        for rounding in (
            Rounding(max(reach / INT8_LIMIT, SMALLEST)),
            Rounding(max((high - low) / (2 * INT8_LIMIT), SMALLEST), (high + low) / 2),
        ):
            error = rows - _rounded(rows, rounding)
            total = float(error.square_().mean(0) @ importance)
            if total < least:
                best, least = rounding, total
    return best


def _rounded(rows: Tensor, rounding: Rounding) -> Tensor:
    codes = ((rows - rounding.middle) / rounding.scale).round_().clamp_(-INT8_LIMIT - 1, INT8_LIMIT)
    return codes * rounding.scale + rounding.middle


class _Sample:
    """Evenly spread rows of one linear's inputs."""

    def __init__(self, num_rows: int) -> None:
        self._stride = max(1, num_rows // KEPT_ROWS)
        self._parts: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        self._parts.append(inputs.flatten(0, -2)[:: self._stride].float().cpu())

    @property
    def rows(self) -> Tensor:
        return torch.cat(self._parts)


def _importance(linear: W8A8Linear) -> Tensor:
    return linear.dequantized().square().sum(0).cpu()


@contextlib.contextmanager
def _watching(linears: Mapping[str, nn.Module], samples: dict[str, _Sample]) -> Iterator[None]:
    handles = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: samples[name].add(inputs[0]))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

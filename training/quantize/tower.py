# SPDX-License-Identifier: Apache-2.0
"""The tower, layer by layer: calibration frames pass through the disk, int8 layers come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.preprocess import frame_pixels
from nvila_ros.models.projector import Projector
from nvila_ros.models.quantization_int8 import int8_tensors
from nvila_ros.models.vision import VisionEmbeddings, VisionLayer
from nvila_ros.training.quantize import smooth
from nvila_ros.training.quantize.statistics import Recorder
from nvila_ros.training.quantize.stored import StoredPart, to_half
from nvila_ros.training.quantize.workplace import Workplace

FEATURES = "features.npy"
ROWS_PER_PASS = 4096  # patches that are in a layer at once
KEPT_ROWS = 8192  # patches that the search for alpha looks at
EMBEDDINGS = "vision_model.embeddings."

OnLayer = Callable[[str], None]


class TowerStage:
    """Encodes the calibration frames and, if asked to, quantizes each layer on the way."""

    def __init__(
        self,
        model: Path,
        config: NvilaConfig,
        workplace: Workplace,
        device: torch.device,
        *,
        is_quantized: bool,
    ) -> None:
        self._config = config
        self._workplace = workplace
        self._device = device
        self._is_quantized = is_quantized
        self._tower = StoredPart(model / "vision_tower")
        self._projector = StoredPart(model / "mm_projector")

    def run(self, frames: list[Image.Image], on_layer: OnLayer) -> None:
        """Leaves `features.npy` (F, T, D) and a file per quantized layer."""
        vision = self._config.vision
        for number in range(vision.num_hidden_layers):
            done = self._workplace.has(layer_file(number)) or not self._is_quantized
            if not (self._workplace.has(FEATURES) and done):
                self._layer(number, frames)
            on_layer(f"tower layer {number + 1} of {vision.num_hidden_layers}")
        if not self._workplace.has(FEATURES):
            self._project(self._config.num_vision_layers)
        self._workplace.drop(hidden_file(self._config.num_vision_layers))

    def _layer(self, number: int, frames: list[Image.Image]) -> None:
        workplace, after = self._workplace, hidden_file(number + 1)
        runs = number < self._config.num_vision_layers
        if self._is_finished(number, after, runs):
            return
        with torch.device("meta"):
            layer = VisionLayer(self._config.vision)
        self._tower.fill(layer, f"vision_model.encoder.layers.{number}.", self._device)
        recorder = None
        if runs:
            if number == 0 and not workplace.has(hidden_file(0)):
                self._embed(frames)
            recorder = Recorder(layer, smooth.WATCHED, with_gram=False)
            self._forward(layer, recorder, number)
        if self._is_quantized:
            packed, report = smooth.quantize_layer(layer, recorder)
            self._write(number, layer, packed, report)
        if runs:
            workplace.drop(hidden_file(number))

    def _is_finished(self, number: int, after: str, runs: bool) -> bool:
        """Whether an earlier run left all that this layer makes."""
        has_output = not runs or any(
            self._workplace.has(name)
            for name in (
                FEATURES,
                *(hidden_file(n) for n in range(number + 1, self._config.num_vision_layers + 1)),
            )
        )
        return has_output and (not self._is_quantized or self._workplace.has(layer_file(number)))

    def _write(self, number: int, layer: VisionLayer, packed, report) -> None:  # type: ignore[no-untyped-def]
        prefix = f"vision_model.encoder.layers.{number}."
        tensors: dict[str, Tensor] = {}
        for name, tensor in to_half(dict(layer.state_dict())).items():
            if not (name.endswith(".weight") and name.removesuffix(".weight") in packed):
                tensors[prefix + name] = tensor
        for name, linear in packed.items():
            for key, tensor in int8_tensors(linear).items():
                tensors[f"{prefix}{name}.{key}"] = tensor.cpu().contiguous()
        self._workplace.write_json(report_file(number), report)
        self._workplace.write_tensors(layer_file(number), tensors)

    @torch.inference_mode()
    def _embed(self, frames: list[Image.Image]) -> None:
        vision = self._config.vision
        with torch.device("meta"):
            embeddings = VisionEmbeddings(vision)
        self._tower.fill(embeddings, EMBEDDINGS, self._device)
        shape = (len(frames), vision.grid_side**2, vision.hidden_size)
        array = self._workplace.new_array(hidden_file(0), shape)
        for part in self._parts(len(frames)):
            pixels = torch.stack([frame_pixels(frame, self._config) for frame in frames[part]])
            array[part] = embeddings(pixels.to(self._device)).cpu().numpy()
        self._workplace.finish_array(hidden_file(0), array)

    @torch.inference_mode()
    def _forward(self, layer: VisionLayer, recorder: Recorder, number: int) -> None:
        before = self._workplace.array(hidden_file(number))
        after = self._workplace.new_array(hidden_file(number + 1), before.shape)
        parts = list(self._parts(len(before)))
        num_kept = max(1, KEPT_ROWS // ROWS_PER_PASS)
        kept = set(np.linspace(0, len(parts) - 1, num_kept).astype(int).tolist())
        with recorder.watching():
            for position, part in enumerate(parts):
                recorder.is_keeping = self._is_quantized and position in kept
                hidden = torch.from_numpy(before[part]).to(self._device)
                after[part] = layer(hidden).cpu().numpy()
        self._workplace.finish_array(hidden_file(number + 1), after)

    @torch.inference_mode()
    def _project(self, number: int) -> None:
        with torch.device("meta"):
            projector = Projector(self._config)
        self._projector.fill(projector, "", self._device)
        hidden = self._workplace.array(hidden_file(number))
        shape = (len(hidden), self._config.tokens_per_frame, self._config.language.hidden_size)
        array = self._workplace.new_array(FEATURES, shape)
        for part in self._parts(len(hidden)):
            patches = torch.from_numpy(hidden[part]).to(self._device)
            if self._config.num_scales > 1:
                patches = patches.repeat(1, 1, self._config.num_scales)
            array[part] = projector(patches).cpu().numpy()
        self._workplace.finish_array(FEATURES, array)

    def _parts(self, num_frames: int) -> Iterator[slice]:
        size = max(1, ROWS_PER_PASS // self._config.vision.grid_side**2)
        for start in range(0, num_frames, size):
            yield slice(start, min(start + size, num_frames))


def hidden_file(number: int) -> str:
    """What enters a layer."""
    return f"tower_hidden_{number}.npy"


def layer_file(number: int) -> str:
    """What a layer became."""
    return f"tower_layer_{number}.safetensors"


def report_file(number: int) -> str:
    """What quantizing a layer found."""
    return f"tower_layer_{number}.json"

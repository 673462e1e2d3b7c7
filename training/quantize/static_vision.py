# SPDX-License-Identifier: Apache-2.0
"""What a static int8 export needs: the tower in int8 but for a few linears, and frames."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from torch import Tensor

from nvila_ros.models.config_files import load_config
from nvila_ros.models.export import load_vision
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.onnx_float_layers import keep_floats
from nvila_ros.models.preprocess import frame_pixels
from nvila_ros.training.quantize.recordings import parse_calibration, record
from nvila_ros.training.quantize.run import QuantizeJob, quantize, unique_frames

MAX_FRAMES = 96

OnProgress = Callable[[str, int, int], None]


def int8_vision(
    folder: Path,
    calibration: str,
    float_layers: Collection[str] = (),
    prompts_per_episode: int = 2,
    on_progress: OnProgress = lambda what, done, total: None,
) -> tuple[Nvila, list[Tensor]]:
    """The checkpoint with its tower in int8 (SmoothQuant if it is not yet), and (3, S, S) frames.

    `float_layers` are names as of `float_names`: these linears stay as the checkpoint has them.
    Frames are those of recorded navigation prompts, spread over them, black among them.
    """
    config = load_config(folder)
    with tempfile.TemporaryDirectory(prefix="nvila_export_") as place:
        recorded = Path(place) / "calibration"
        source = parse_calibration(calibration)
        prompts = record(
            recorded,
            source,
            prompts_per_episode,
            lambda done, total: on_progress(f"episode {done} of {total} recorded", done, total),
        )
        pictures = source if isinstance(source, Path) and source.is_dir() else recorded
        images, _ = unique_frames(pictures, prompts, config.vision.image_size)
        chosen = np.linspace(0, len(images) - 1, min(MAX_FRAMES, len(images))).astype(int)
        frames = [frame_pixels(images[index], config) for index in chosen]
        if config.vision.quantization is not None:
            network = load_vision(folder)
            keep_floats(network, float_layers)
            return network, frames
        target = Path(place) / "int8"
        job = QuantizeJob(model=folder, target=target, language="none", calibration=str(pictures))
        quantize(job, on_progress)
        network = load_vision(target)
        keep_floats(network, float_layers, load_vision(folder))
        return network, frames

# SPDX-License-Identifier: Apache-2.0
"""The tower and projector of a checkpoint as files for other engines, checked after writing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError
from nvila_ros.models import tensorrt_engine
from nvila_ros.models.engine_file import write_engine
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.onnx_float_layers import float_text
from nvila_ros.models.onnx_runtime import FINGERPRINT, PRECISION, PRECISIONS, OnnxVision
from nvila_ros.models.onnx_vision import Roundings, vision_graph
from nvila_ros.models.weights import open_checkpoint

VISION_PARTS = ("vision_tower", "mm_projector")
FLOAT_LAYERS = "nvila_float_layers"  # of the tower, by name
FLOAT_TYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Exported:
    """One file that was written."""

    path: Path
    precision: str
    num_bytes: int
    seconds: float
    gpus: tuple[str, ...] = ()


def load_vision(folder: Path | str) -> Nvila:
    """A checkpoint's network with tower and projector in float32 on the CPU, the decoder empty."""
    model, _, readers = open_checkpoint(folder)
    for part in VISION_PARTS:
        state = dict(readers[part].stream(torch.float32, torch.device("cpu")))
        model.get_submodule(part).load_state_dict(state, assign=True)
    return model.eval()


def graph_name(precision: str, float_type: str) -> str:
    """vision_fp32.onnx, vision_int8_fp16.onnx: what is int8 and what the rest is."""
    return f"vision_{precision}{f'_{float_type}' if precision == 'int8' else ''}.onnx"


def engine_name(precision: str, library: str, gpus: Sequence[str]) -> str:
    """vision_int8_tensorrt_rtx_sm89.engine."""
    return f"vision_{precision}_{library}_{'_'.join(gpus)}.engine"


def export_onnx(
    model: Nvila,
    out: Path,
    *,
    fingerprint: str,
    precision: str,
    float_type: str,
    frames: Sequence[int],
    scales: Roundings | None = None,
) -> Exported:
    """Writes and checks one graph; its metadata say what it was made from and how to feed it.

    `precision` int8 needs `scales` and a tower in int8; `float_type` is that of everything else.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; one of {', '.join(PRECISIONS)} is expected")
    if (precision == "int8") != (scales is not None):
        raise ConfigError("int8 needs activation scales, and they are for int8 alone")
    begin_s = time.perf_counter()
    graph = vision_graph(model, FLOAT_TYPES[float_type], scales)
    config = model.config
    path = out / graph_name(precision, float_type)
    graph.save(
        path,
        {
            FINGERPRINT: fingerprint,
            PRECISION: precision,
            FLOAT_LAYERS: float_text(model) if precision == "int8" else "all",
            "nvila_frames": ",".join(map(str, frames)),
            "nvila_input": f"RGB / 127.5 - 1, {config.vision.image_size} px, NCHW",
            "nvila_image_aspect_ratio": config.image_aspect_ratio,
            "nvila_tokens_per_frame": str(config.tokens_per_frame),
        },
    )
    num_bytes = sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
    return Exported(path, precision, num_bytes, time.perf_counter() - begin_s)


def export_engine(
    graph: Path,
    out: Path,
    library: str,
    *,
    fingerprint: str,
    precision: str,
    gpus: Sequence[str],
    frames: Sequence[int],
    float_layers: str = "",
) -> Exported:
    """Builds one engine file from an exported graph for the named GPUs."""
    begin_s = time.perf_counter()
    named = tensorrt_engine.check_gpus(library, gpus)
    engine = tensorrt_engine.build_engine(library, graph, named, frames)
    description = tensorrt_engine.describe(library, fingerprint, precision, named, frames)
    description = replace(description, float_layers=float_layers)
    path = out / engine_name(precision, library, named)
    write_engine(path, description, engine)
    return Exported(path, precision, path.stat().st_size, time.perf_counter() - begin_s, named)


@torch.inference_mode()
def relative_error(path: Path, fingerprint: str, model: Nvila, pixels: Tensor) -> float:
    """|graph - network| / |network| over the features of some frames, by ONNX Runtime on the CPU.

    The network is the one that was exported, in float32 (its int8 layers with a scale per token).
    """
    expected = model.encode_frames(pixels)
    return float((OnnxVision(path, fingerprint)(pixels) - expected).norm() / expected.norm())

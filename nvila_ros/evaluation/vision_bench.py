# SPDX-License-Identifier: Apache-2.0
"""Every vision backend of this machine over the same frames, in turns, beside the floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nvila_ros.errors import NvilaError
from nvila_ros.models.runtime_backend import load_engine
from nvila_ros.models.vision_engine import (
    WithVision,
    device_name,
    median_ms,
    with_vision_backend,
)

if TYPE_CHECKING:
    from rich.table import Table

EXPORTED = ("tensorrt", "onnxruntime")
ROUNDS = 3
FLOAT_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def measure(
    folder: Path, counts: Sequence[int], device: str = "auto", backend: str = "auto"
) -> dict[str, Any]:
    """Milliseconds per backend and number of frames, and its precision; why another cannot run.

    `floor` is the tower's arithmetic over what this device reaches in one large product of its own
    dtype, measured in the same run; what computes in int8 may be below it.
    """
    engine, _ = load_engine(folder, device, backend=backend)
    if isinstance(engine, WithVision):
        engine = engine.own  # the exported one has a row of its own
    runs: dict[str, Callable[[Tensor], Tensor]] = {engine.name: engine.encode_frames}  # type: ignore[attr-defined]
    floats = FLOAT_NAMES.get(engine.dtype, str(engine.dtype))
    own = "w8a8" if engine.config.vision.quantization is not None else floats
    precisions = {engine.name: own, "floor": floats}  # type: ignore[attr-defined]
    problems: dict[str, str] = {}
    for name in EXPORTED:
        try:
            exported = with_vision_backend(engine, folder, name)
            runs[name], precisions[name] = exported.encode_frames, exported.vision.precision
        except NvilaError as error:
            problems[name] = str(error)
    side = engine.config.vision.image_size
    times: dict[str, dict[str, float]] = {name: {} for name in (*runs, "floor")}
    rate = product_rate(engine.device, engine.dtype)
    for count in counts:
        pixels = torch.rand(count, 3, side, side).to(engine.device, engine.dtype) * 2 - 1
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                found[name].append(median_ms(run, pixels))
        for name, values in found.items():
            times[name][str(count)] = sorted(values)[ROUNDS // 2]
        times["floor"][str(count)] = 1e3 * count * frame_flops(engine.config) / rate
    return {
        "model": str(folder),
        "device": device_name(engine.device),
        "threads": torch.get_num_threads(),
        "milliseconds": times,
        "precisions": precisions,
        "not_run": problems,
    }


def frame_flops(config: Any) -> float:
    """Multiplications and additions of one frame's tower: 2 per weight and patch, and attention."""
    vision = config.vision
    width, patches = vision.hidden_size, vision.grid_side**2
    linears = 4 * width**2 + 2 * width * vision.intermediate_size
    attention = 2 * patches * width
    embedding = vision.num_channels * vision.patch_size**2 * width
    return 2.0 * patches * (config.num_vision_layers * (linears + attention) + embedding)


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of one square product on this device, its best of several."""
    size = 8 * size if device.type == "cuda" else size
    left, right = (torch.rand(size, size).to(device, dtype) for _ in range(2))
    best_ms = min(median_ms(lambda pixels: pixels @ right, left, 3) for _ in range(3))
    return 2e3 * size**3 / best_ms


def table(result: dict[str, Any]) -> Table:
    """The same for people."""
    from rich.table import Table

    counts = list(result["milliseconds"]["floor"])
    view = Table(title=f"tower and projector on {result['device']}, milliseconds a pass")
    view.add_column("backend")
    view.add_column("precision")
    for count in counts:
        view.add_column(f"{count} frame{'s' if count != '1' else ''}", justify="right")
    view.add_column("why not")
    for name, times in result["milliseconds"].items():
        view.add_row(
            name, result["precisions"][name], *(f"{times[count]:.1f}" for count in counts), ""
        )
    for name, problem in result["not_run"].items():
        view.add_row(name, "-", *("-" for _ in counts), problem)
    return view

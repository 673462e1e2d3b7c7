# SPDX-License-Identifier: Apache-2.0
"""Who computes a frame's features: the engine's own tower, or an exported one in its place."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.kernels.build import cache_folder
from nvila_ros.models.engine_file import FOLDER
from nvila_ros.models.fingerprint import vision_fingerprint
from nvila_ros.models.onnx_runtime import OnnxVision
from nvila_ros.models.tensorrt_engine import (
    CURRENT,
    PLAIN,
    RTX,
    RTX_GPUS,
    TensorRtVision,
    gpu_name,
)

AUTO, OWN = "auto", ("kernels", "torch")
VISION_BACKENDS = (AUTO, "kernels", "tensorrt", "onnxruntime", "torch")
MEASURED_FILE = "vision_backend.json"
NUM_WARM_UP, NUM_TIMED = 2, 7

_log = logging.getLogger(__name__)


class VisionEngine(Protocol):
    """Tower and projector: (F, 3, S, S) in [-1, 1] -> (F, T, D)."""

    name: str
    precision: str

    def __call__(self, pixels: Tensor) -> Tensor:
        """On the pixels' device and in their dtype."""


class WithVision:
    """An inference engine whose frames are encoded by somebody else; all else is its own."""

    def __init__(self, engine: Any, vision: VisionEngine) -> None:
        self.own, self.vision = engine, vision

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """See `Nvila.encode_frames`."""
        with torch.inference_mode():
            return self.vision(pixels)

    def __getattr__(self, name: str) -> Any:
        if name == "own":  # before it is set, as when unpickled
            raise AttributeError(name)
        return getattr(self.own, name)


def with_vision_backend(
    engine: Any,
    folder: Path | str,
    backend: str,
    on_notice: Callable[[str], None] = _log.warning,
) -> Any:
    """The engine, or the engine with an exported tower in place of its own.

    `auto` takes the fastest of what lies in `<folder>/vision_engine/` and the engine's own tower,
    measured once per device and checkpoint; what cannot be used is told to `on_notice` and left.
    Any other name must be usable: an NvilaError says why it is not.
    """
    if backend not in VISION_BACKENDS:
        raise ConfigError(
            f"vision_backend is {backend!r}; one of {', '.join(VISION_BACKENDS)} is expected"
        )
    own = engine.name
    if backend in OWN:
        if backend != own:
            raise ConfigError(
                f"vision_backend is {backend!r}, but the language part runs on {own}; "
                f"give backend {backend!r} too, or vision_backend auto"
            )
        return engine
    folder = Path(folder)
    if backend != AUTO:
        return WithVision(engine, _open(backend, folder, engine.device))
    candidates: dict[str, VisionEngine] = {}
    for name in _possible(folder, engine.device):
        try:
            candidates[name] = _open(name, folder, engine.device)
        except NvilaError as error:
            on_notice(f"vision backend {name} is not used: {error}")
    if not candidates:
        return engine
    chosen = fastest(engine, candidates, folder, on_notice)
    return engine if chosen == own else WithVision(engine, candidates[chosen])


def fastest(
    engine: Any,
    candidates: Mapping[str, VisionEngine],
    folder: Path,
    on_notice: Callable[[str], None] = _log.warning,
) -> str:
    """The name with the least time for one frame, remembered in the cache folder.

    A candidate that fails at that is told to `on_notice` and not chosen; nor is it remembered.
    """
    versions = ",".join(f"{name} {candidates[name].precision}" for name in sorted(candidates))
    threads = torch.get_num_threads() if engine.device.type == "cpu" else 0
    key = f"{device_name(engine.device)} {threads}|{vision_fingerprint(folder)}|{versions}"
    path = cache_folder().parent / MEASURED_FILE
    known = _read(path)
    if key not in known:
        times: dict[str, float] = {}
        runs: dict[str, Callable[[Tensor], Tensor]] = {engine.name: engine.encode_frames}
        side = engine.config.vision.image_size
        pixels = torch.zeros(1, 3, side, side, device=engine.device, dtype=engine.dtype)
        runs.update(candidates)
        for name, run in runs.items():
            try:
                times[name] = median_ms(run, pixels)
            except NvilaError as error:
                if name == engine.name:
                    raise
                on_notice(f"vision backend {name} is not used: {error}")
        known[key] = times
        if len(times) == len(runs):
            _write(path, known)
    times_ms = known[key]
    chosen = min(times_ms, key=lambda name: times_ms[name])
    listed = ", ".join(f"{name} {ms:.1f} ms" for name, ms in times_ms.items())
    _log.info("vision backend %s (one frame: %s)", chosen, listed)
    return chosen


@torch.inference_mode()
def median_ms(run: Callable[[Tensor], Tensor], pixels: Tensor, count: int = NUM_TIMED) -> float:
    """Median wall time of a pass, the device waited for."""
    times_s = []
    for number in range(NUM_WARM_UP + count):
        begin_s = time.perf_counter()
        run(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize(pixels.device)
        if number >= NUM_WARM_UP:
            times_s.append(time.perf_counter() - begin_s)
    return 1e3 * sorted(times_s)[count // 2]


def _possible(folder: Path, device: torch.device) -> list[str]:
    """Backends for which a file lies there and that can run on this kind of device."""
    place = folder / FOLDER
    if device.type == "cuda":
        return ["tensorrt"] if any(place.glob("*.engine")) else []
    return ["onnxruntime"] if any(place.glob("*.onnx")) else []


def _open(name: str, folder: Path, device: torch.device) -> VisionEngine:
    fingerprint, place = vision_fingerprint(folder), folder / FOLDER
    if name == "tensorrt":
        if device.type != "cuda":
            raise ConfigError(f"tensorrt runs on a CUDA GPU, the device is {device}")
        gpu = gpu_name(device)
        files = sorted(place.glob("*.engine"))
        fitting = [path for path in files if gpu in path.stem.split("_")] or files
        if not fitting:
            library = RTX if gpu in RTX_GPUS else PLAIN
            engine = library.replace("_", "-")
            reason = "" if library == RTX else f" (TensorRT-RTX does not run on {gpu})"
            raise ConfigError(
                f"{place} holds no engine{reason}; build one: nvila export {folder} --part vision "
                f"--precision int8 --engine {engine} --gpu {gpu if library == RTX else CURRENT}"
            )
        return cast(VisionEngine, TensorRtVision(fitting[0], fingerprint, device, folder))
    if device.type != "cpu":
        raise ConfigError(f"onnxruntime runs on the CPU here, the device is {device}")
    graphs = sorted(place.glob("*.onnx"), key=_preference)
    if not graphs:
        raise ConfigError(
            f"{place} holds no graph; make one: nvila export {folder} --part vision "
            "--precision fp32"
        )
    return OnnxVision(graphs[0], fingerprint, folder)


def _preference(path: Path) -> tuple[int, str]:
    """On a CPU: int8 with float32 around it, then float32, then the rest."""
    order = ("vision_int8_fp32", "vision_fp32")
    return (order.index(path.stem) if path.stem in order else len(order), path.name)


def device_name(device: torch.device) -> str:
    """As its driver calls it, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, dict[str, float]]) -> None:
    """That it cannot be kept is no error: it is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _log.debug("%s was not written: %s", path, error)

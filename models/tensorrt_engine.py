# SPDX-License-Identifier: Apache-2.0
"""TensorRT: builds engines from our ONNX graphs and runs them on the current stream.

Two libraries with one interface: TensorRT-RTX (`tensorrt_rtx`) for GeForce and RTX cards, which
builds for any of them without a GPU, and TensorRT (`tensorrt`) for Jetson and data centres, which
builds for the card of the machine it runs on.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError, ExportError, install_hint
from nvila_ros.kernels.build import cache_folder
from nvila_ros.models.engine_file import Description, read_description, read_engine
from nvila_ros.models.onnx_vision import INPUT, OUTPUT

RTX, PLAIN = "tensorrt_rtx", "tensorrt"
LIBRARIES = (RTX, PLAIN)
RTX_GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
CURRENT = "current"

_log = logging.getLogger(__name__)


def import_library(name: str) -> Any:
    """tensorrt_rtx or tensorrt; a ConfigError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        bindings = ".venv/bin/pip install tensorrt"
        remedy = install_hint("tensorrt-rtx") if name == RTX else bindings
        raise ConfigError(f"{name} cannot be imported ({error}); {remedy}") from None


def gpu_name(device: torch.device | None = None) -> str:
    """sm89 and the like; a ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "there is no CUDA GPU here, which a TensorRT engine runs on; to build for another "
            "machine name its card, such as --engine tensorrt-rtx --gpu sm89"
        )
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def check_gpus(library: str, gpus: Sequence[str]) -> tuple[str, ...]:
    """The cards to build for, by name; ConfigError for one that the library does not know."""
    if library == PLAIN:
        if any(gpu != CURRENT for gpu in gpus):
            raise ConfigError(
                f"tensorrt builds for the GPU of the machine it runs on, got {', '.join(gpus)}; "
                "give --gpu current there, or --engine tensorrt-rtx for a GeForce card"
            )
        return (gpu_name(),)
    named = tuple(gpu_name() if gpu == CURRENT else gpu for gpu in gpus)
    unknown = [gpu for gpu in named if gpu not in RTX_GPUS]
    if unknown:
        advice = " (data centre: --engine tensorrt)" if "sm90" in unknown else ""
        raise ConfigError(
            f"TensorRT-RTX does not build for {', '.join(unknown)}{advice}; it knows "
            f"{', '.join(RTX_GPUS)}"
        )
    return named


def build_engine(library: str, graph: Path, gpus: Sequence[str], frames: Sequence[int]) -> bytes:
    """An ONNX graph (pixels, features) -> the engine's bytes; ExportError with the parser's words.

    Strongly typed: the graph's own types are computed with. One profile from one frame, which may
    be left over of many, to the most, tuned for the most.
    """
    trt = import_library(library)
    builder = trt.Builder(_logger(library))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _logger(library))
    if not parser.parse_from_file(str(graph)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = "; ".join(f"{error.node_operator()}: {error.desc()}" for error in found)
        raise ExportError(f"{library} cannot read {graph.name}: {errors}")
    config = builder.create_builder_config()
    if library == RTX:
        config.num_compute_capabilities = len(gpus)
        for index, gpu in enumerate(gpus):
            capability = getattr(trt.ComputeCapability, gpu.upper())
            if not config.set_compute_capability(capability, index):
                raise ExportError(f"this TensorRT-RTX {trt.__version__} does not build for {gpu}")
    profile = builder.create_optimization_profile()
    most = max(frames)
    rest = tuple(network.get_input(0).shape)[1:]
    profile.set_shape(INPUT, *((count, *rest) for count in (1, most, most)))
    config.add_optimization_profile(profile)
    cache_path = cache_folder().parent / "tensorrt" / f"{library}_{trt.__version__}.timing"
    if library == PLAIN:  # RTX tunes when the engine is first run, not here
        kept = cache_path.read_bytes() if cache_path.exists() else b""
        config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=True)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(
            f"{library} {trt.__version__} could not build {graph.name} for {', '.join(gpus)}; "
            "its messages stand in the log"
        )
    if library == PLAIN:
        _keep(cache_path, config.get_timing_cache())
    return bytes(engine)


def describe(
    library: str, fingerprint: str, precision: str, gpus: Sequence[str], frames: Sequence[int]
) -> Description:
    """What is written in front of an engine built here."""
    return Description(
        library=library,
        version=import_library(library).__version__,
        fingerprint=fingerprint,
        precision=precision,
        gpus=tuple(gpus),
        max_frames=max(frames),
    )


class TensorRtVision:
    """An engine file as the tower and projector: pixels on the GPU in, features on the GPU out.

    Runs on the current stream without a copy to the host or a wait, so that a CUDA graph can hold
    it. ExportError where the file does not belong to the checkpoint, library or GPU.
    """

    name = "tensorrt"

    def __init__(self, path: Path, fingerprint: str, device: torch.device, model: Path) -> None:
        library = read_description(path).library
        if library not in LIBRARIES:
            raise ExportError(f"{path} is for {library}; known are {', '.join(LIBRARIES)}")
        trt = import_library(library)
        self.description, engine = read_engine(
            path,
            fingerprint=fingerprint,
            library=library,
            version=trt.__version__,
            gpu=gpu_name(device),
            model=model,
        )
        self.precision = self.description.precision
        self._runtime = trt.Runtime(_logger(library))
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise ExportError(
                f"{library} refuses {path}; build it anew: {self.description.command(model)}"
            )
        self._context = self._engine.create_execution_context()
        types = {trt.DataType.HALF: torch.float16, trt.DataType.FLOAT: torch.float32}
        self._dtype = types[self._engine.get_tensor_dtype(INPUT)]
        self._device = device

    def __call__(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) on the GPU -> (F, T, D) in the same dtype."""
        parts = [self._run(part) for part in pixels.split(self.description.max_frames)]
        return torch.cat(parts).to(pixels.dtype) if len(parts) > 1 else parts[0].to(pixels.dtype)

    def _run(self, pixels: Tensor) -> Tensor:
        inputs = pixels.to(self._device, self._dtype).contiguous()
        if not self._context.set_input_shape(INPUT, tuple(inputs.shape)):
            raise ExportError(f"the vision engine does not take pixels {tuple(inputs.shape)}")
        shape = tuple(self._context.get_tensor_shape(OUTPUT))
        outputs = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._context.set_tensor_address(INPUT, inputs.data_ptr())
        self._context.set_tensor_address(OUTPUT, outputs.data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ExportError("TensorRT could not run the vision engine; its messages are logged")
        inputs.record_stream(stream)
        return outputs


@functools.cache
def _logger(library: str) -> Any:
    """The library's messages through `logging`; one object, as the library wants it."""
    trt = import_library(library)
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            _log.log(levels.get(severity, logging.DEBUG), "%s: %s", library, message)

    return Logger()


def _keep(path: Path, cache: Any) -> None:
    """The builder's measurements help the next build; that they cannot be kept is no error."""
    try:
        content = bytes(cache.serialize())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (OSError, AttributeError, TypeError) as error:
        _log.debug("the timing cache was not kept: %s", error)

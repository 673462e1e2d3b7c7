# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on a CPU as the tower and projector."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError, ExportError, install_hint
from nvila_ros.models.onnx_vision import INPUT, OUTPUT

PRECISIONS = ("fp32", "fp16", "int8")
SOURCE_PLACE = r"/onnxruntime_src/\S+ .*?\)(?= [A-Z])"  # file, line and function of its own
MAX_MESSAGE_LENGTH = 400
FINGERPRINT, PRECISION = "nvila_fingerprint", "nvila_precision"


def import_onnxruntime() -> Any:
    """The onnxruntime package, or a ConfigError that names the extra."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "the vision backend onnxruntime needs the package onnxruntime; "
            + install_hint("export")
        ) from None
    return onnxruntime


class OnnxVision:
    """An exported graph that computes features on the CPU: (F, 3, S, S) -> (F, T, D)."""

    name = "onnxruntime"

    def __init__(self, path: Path, fingerprint: str, model: Path | str = "MODEL") -> None:
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        remake = f"nvila export {shlex.quote(str(model))} --part vision{_precision_of(path)}"
        if not path.is_file():
            raise ExportError(f"{path} is missing; make it with {remake}")
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no common class of its errors
            raise ExportError(
                f"ONNX Runtime cannot use {path}: {_one_line(error)}; write it anew: {remake}"
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        found = metadata.get(FINGERPRINT, "none")
        if found != fingerprint:
            raise ExportError(
                f"{path} was made from another checkpoint ({found}, this one is {fingerprint}); "
                f"{remake}"
            )
        self.precision = metadata.get(PRECISION, "fp32")
        half = self._session.get_inputs()[0].type == "tensor(float16)"
        self._dtype = torch.float16 if half else torch.float32
        self._path = path

    def __call__(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) in [-1, 1] -> (F, T, D), in the dtype and on the device of the pixels."""
        inputs = pixels.detach().to("cpu", self._dtype).contiguous().numpy()
        try:
            (features,) = self._session.run([OUTPUT], {INPUT: inputs})
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime could not run {self._path}: {_one_line(error)}"
            ) from error
        return torch.from_numpy(features).to(pixels.device, pixels.dtype)


def _precision_of(path: Path) -> str:
    """vision_int8_fp32.onnx -> what makes it, as far as its name tells."""
    words = path.stem.split("_")
    return f" --precision {words[1]}" if len(words) > 1 and words[1] in PRECISIONS else ""


def _one_line(error: Exception) -> str:
    text = re.sub(SOURCE_PLACE, " ", " ".join(str(error).split()))
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[:MAX_MESSAGE_LENGTH]} ..."

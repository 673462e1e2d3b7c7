# SPDX-License-Identifier: Apache-2.0
"""The other way to pack a decoder: AutoAWQ itself, where it is installed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nvila_ros.errors import ConfigError

FOLDER = "autoawq"
SETTINGS = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
PARALLEL_SAMPLES = 8  # bounds its memory


def check(backend: str) -> None:
    """Raise ConfigError where AutoAWQ is asked for and missing."""
    if backend == "autoawq" and importlib.util.find_spec("awq") is None:
        raise ConfigError(
            "the backend autoawq is not installed; install it beside this package with: "
            "pip install 'transformers==4.51.3' accelerate datasets zstandard triton && "
            "pip install --no-deps autoawq==0.2.9 (or leave --backend at own)"
        )


class NoTokenizer:
    """AutoAWQ is given rows of numbers; its tokenizer is only asked to be there and to save."""

    def save_pretrained(self, folder: str) -> None:
        """Tokenizer files are copied with the rest of the checkpoint."""


def cpu_quantizer() -> type:
    """AutoAWQ's quantizer without a defect that shows on a CPU alone.

    While it tries scales it remembers the weights as `tensor.cpu()`. On a GPU that is a copy. On a
    CPU it is the weights themselves, so the first try scales what is remembered: all later ones
    start from changed weights, and the layer is left changed.
    """
    from awq.quantize.quantizer import AwqQuantizer

    class CpuQuantizer(AwqQuantizer):  # type: ignore[misc]
        def _compute_best_scale(
            self, x: Any, w_mean: Any, x_mean: Any, module2inspect: nn.Module, *rest: Any
        ) -> Any:
            remembered = {name: each.clone() for name, each in module2inspect.state_dict().items()}
            module2inspect.state_dict = lambda: remembered  # type: ignore[assignment,method-assign]
            try:
                return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *rest)
            finally:
                del module2inspect.state_dict

    return CpuQuantizer


def pack(llm: Path, workplace: Path, rows: np.ndarray, lengths: Sequence[int]) -> Path:
    """`llm/` -> a folder with AutoAWQ's tensors, calibrated on fused prompts (sum of lengths, D).

    AutoAWQ knows no pictures: while it calibrates, the embedding table is the fused prompts
    themselves, and each "token" names one row of them.
    """
    folder = workplace / FOLDER
    if folder.exists():
        return folder
    import transformers.activations as activations

    if not hasattr(activations, "PytorchGELUTanh"):
        # Its last release imports a class by a name that transformers has given up.
        activations.PytorchGELUTanh = activations.GELUTanh  # type: ignore[attr-defined]
    from awq import AutoAWQForCausalLM

    model: Any = AutoAWQForCausalLM.from_pretrained(
        str(llm), device_map="cpu", use_cache=False, safetensors=True
    )
    stack = model.model.model
    table = stack.embed_tokens
    fused = torch.from_numpy(np.array(rows)).to(table.weight.dtype)
    stack.embed_tokens = nn.Embedding.from_pretrained(fused)
    ends = np.cumsum(lengths).tolist()
    model.quantize(
        NoTokenizer(),
        quant_config=dict(SETTINGS),
        calib_data=[
            list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)
        ],
        max_calib_samples=len(lengths),
        max_calib_seq_len=max(lengths),
        n_parallel_calib_samples=PARALLEL_SAMPLES,
        quantizer_cls=cpu_quantizer(),
    )
    stack.embed_tokens = table
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_quantized(str(unfinished), safetensors=True)
    unfinished.rename(folder)
    return folder

# SPDX-License-Identifier: Apache-2.0
"""The other way to pack a decoder: AutoAWQ itself, where it is installed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvila_ros.errors import ConfigError
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.quantize.recordings import RecordedPrompt

FOLDER = "autoawq"
SETTINGS = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
BLOCK_TOKENS = 256  # its calibration text is cut into blocks of this length


def check(backend: str) -> None:
    """Raise ConfigError where AutoAWQ is asked for and missing."""
    if backend == "autoawq" and importlib.util.find_spec("awq") is None:
        raise ConfigError(
            "the backend autoawq is not installed; install it beside this package with: "
            "pip install 'transformers==4.51.3' accelerate datasets zstandard triton && "
            "pip install --no-deps autoawq==0.2.9 (or leave --backend at own)"
        )


class TokenizerForAutoawq:
    """What AutoAWQ asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Text -> ids."""
        return self._tokenizer.encode(text)

    def save_pretrained(self, folder: str) -> None:
        """It is copied with the rest of the checkpoint."""


def pack(
    llm: Path, workplace: Path, tokenizer: Tokenizer, prompts: Sequence[RecordedPrompt]
) -> Path:
    """`llm/` -> a folder with AutoAWQ's tensors; it calibrates on the prompts' text alone."""
    folder = workplace / FOLDER
    if folder.exists():
        return folder
    import transformers.activations as activations

    if not hasattr(activations, "PytorchGELUTanh"):
        # Its last release imports a class by a name that transformers has given up.
        activations.PytorchGELUTanh = activations.GELUTanh
    from awq import AutoAWQForCausalLM

    model: Any = AutoAWQForCausalLM.from_pretrained(
        str(llm), device_map="cpu", use_cache=False, safetensors=True
    )
    texts = [f"{prompt.instruction} {prompt.answer}" for prompt in prompts]
    model.quantize(
        TokenizerForAutoawq(tokenizer),
        quant_config=dict(SETTINGS),
        calib_data=texts,
        max_calib_samples=len(texts),
        max_calib_seq_len=BLOCK_TOKENS,
    )
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_quantized(str(unfinished), safetensors=True)
    unfinished.rename(folder)
    return folder

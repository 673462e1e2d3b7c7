# SPDX-License-Identifier: Apache-2.0
"""Conformance of a quantized decoder: its weights and logits held to those of the quantizer.

A folder holds a decoder in `quantized/` and `expected.safetensors`: `input_ids` (T,), `logits`
(T, V) float32, and `dequantized.<module>.weight` (N, K) for some of its modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights

LOGITS_TOLERANCE = 1e-3
WEIGHT_PREFIX = "dequantized."


@dataclass(frozen=True, kw_only=True)
class DecoderResult:
    """What of a quantized decoder equals the quantizer's own answers."""

    num_weights: int
    different_weights: tuple[str, ...]  # modules whose dense weights differ in any bit
    logits_difference: float  # largest absolute difference; nan where they are not finite
    argmax_agreement: float  # share of the tokens, in [0, 1]

    @property
    def passed(self) -> bool:
        """All weights are equal, logits within tolerance and every choice the same."""
        return (
            not self.different_weights
            and self.logits_difference <= LOGITS_TOLERANCE
            and self.argmax_agreement == 1.0
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def is_decoder_folder(folder: Path | str) -> bool:
    """Whether a folder has the form that `check_decoder` reads."""
    return (Path(folder) / "quantized").is_dir()


@torch.inference_mode()
def check_decoder(folder: Path | str) -> DecoderResult:
    """Load the decoder in float32 on the CPU and compare all that the folder expects."""
    folder = Path(folder)
    expected = read_tensors(folder / "expected.safetensors", ("input_ids", "logits"))
    model = weights.load_language_model(folder / "quantized", "cpu", torch.float32)
    names = [key for key in expected if key.startswith(WEIGHT_PREFIX)]
    different = [
        name.removeprefix(WEIGHT_PREFIX).removesuffix(".weight")
        for name in names
        if not _equal(model.dense_weight(name.removeprefix(WEIGHT_PREFIX)), expected[name])
    ]
    embeds = model.model.embed_tokens(expected["input_ids"].long())  # (T, D)
    logits = model.logits(model(embeds.unsqueeze(0))[0])  # (T, V)
    if logits.shape != expected["logits"].shape:
        raise CheckpointError(
            f"{folder}: the decoder gives logits {tuple(logits.shape)}, "
            f"{tuple(expected['logits'].shape)} are expected; copy the folder again"
        )
    same = logits.argmax(-1) == expected["logits"].argmax(-1)
    return DecoderResult(
        num_weights=len(names),
        different_weights=tuple(different),
        logits_difference=float((logits - expected["logits"]).abs().max()),
        argmax_agreement=float(same.float().mean()),
    )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def read_tensors(path: Path, required: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a file of expected answers; CheckpointError says what is wrong with it."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy the conformance folder again") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or corrupt ({error}); copy it again") from None
    missing = [key for key in required if key not in tensors]
    if missing:
        raise CheckpointError(f"{path} has no {', '.join(missing)}; nothing can be compared")
    return tensors

# SPDX-License-Identifier: Apache-2.0
"""Conformance of an int4 decoder: its weights and answers held to the tool that quantized it.

A folder holds the decoder in `quantized/` and, in `expected.safetensors`, its weights dequantized
to float16 (`dequantized.<module>.weight`), token ids and the logits of the dequantized network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nvila_ros.errors import CheckpointError
from nvila_ros.kernels.w4a16 import W4A16Linear
from nvila_ros.models import weights

DECODER_FOLDER = "quantized"
EXPECTED_FILE = "expected.safetensors"
LOGITS_TOLERANCE = 1e-3
PREFIX, SUFFIX = "dequantized.", ".weight"


@dataclass(frozen=True, kw_only=True)
class DecoderResult:
    """How far a decoder is from its reference."""

    case: str
    num_weights: int
    num_weights_equal: int  # bit for bit, as float16
    logits_difference: float | None  # largest absolute difference; None where it is not finite
    argmax_agreement: float  # share of the positions, in [0, 1]

    @property
    def passed(self) -> bool:
        """All of it is equal or within tolerance."""
        return (
            self.num_weights_equal == self.num_weights > 0
            and self.logits_difference is not None
            and self.logits_difference <= LOGITS_TOLERANCE
            and self.argmax_agreement == 1.0
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def is_decoder_folder(folder: Path) -> bool:
    """Whether a folder is of this form."""
    return (folder / DECODER_FOLDER).is_dir() and not (folder / "expected").exists()


@torch.inference_mode()
def check_decoder(folder: Path) -> DecoderResult:
    """Read the decoder and compare, in float32 on the CPU."""
    path = folder / EXPECTED_FILE
    try:
        expected = load_file(path)
        ids, logits = expected["input_ids"].long(), expected["logits"].float()  # (L,), (L, V)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy the conformance folder again") from None
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is corrupt or has no {error}; copy it again") from None
    model = weights.load_language_model(folder / DECODER_FOLDER, "cpu", torch.float32)
    linears = {name: part for name, part in model.named_modules() if isinstance(part, W4A16Linear)}
    names = [key for key in expected if key.startswith(PREFIX)]
    equal = 0
    for name in names:
        linear = linears.get(name.removeprefix(PREFIX).removesuffix(SUFFIX))
        equal += linear is not None and torch.equal(linear.dequantized(), expected[name])
    ours = model.logits(model(model.model.embed_tokens(ids).unsqueeze(0))[0])
    if ours.shape != logits.shape:
        raise CheckpointError(
            f"{path}: logits have shape {tuple(logits.shape)}, the decoder gives "
            f"{tuple(ours.shape)}; they are not of one checkpoint"
        )
    difference = float((ours - logits).abs().max())
    return DecoderResult(
        case=DECODER_FOLDER,
        num_weights=len(names),
        num_weights_equal=equal,
        logits_difference=difference if difference < float("inf") else None,
        argmax_agreement=float((ours.argmax(-1) == logits.argmax(-1)).float().mean()),
    )

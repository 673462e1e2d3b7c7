# SPDX-License-Identifier: Apache-2.0
"""Conformance: a checkpoint's answers held to those that the reference implementation gave.

A folder holds a checkpoint and `expected/`: `cases.json`, the pictures `<case>_<n>.png` and one
`<case>.safetensors` per case. Everything is computed in float32 on the CPU, as the reference was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nvila_ros.evaluation.conformance_files import (
    message,
    read_cases,
    read_expected,
    read_images,
)
from nvila_ros.evaluation.decoder_conformance import (
    DecoderResult,
    check_decoder,
    is_decoder_folder,
)
from nvila_ros.models import weights
from nvila_ros.models.generate import continue_greedy
from nvila_ros.models.inputs import prepare
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.preprocess import Tiles, image_tiles
from nvila_ros.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.table import Table

EMBEDS_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What of one case equals the reference; None where it could not be compared."""

    case: str
    tiles_equal: bool | None  # None without pictures
    ids_equal: bool
    length_equal: bool
    embeds_difference: float | None  # largest absolute difference at the reference's rows
    logits_difference: float | None
    argmax_agreement: float | None  # share of those rows, in [0, 1]
    greedy_equal: bool | None  # None where the first token already lies outside the vocabulary
    num_greedy_compared: int

    @property
    def passed(self) -> bool:
        """All of it is equal or within tolerance."""
        return (
            self.tiles_equal is not False
            and self.ids_equal
            and self.length_equal
            and self.embeds_difference is not None
            and self.embeds_difference <= EMBEDS_TOLERANCE
            and self.logits_difference is not None
            and self.logits_difference <= LOGITS_TOLERANCE
            and self.argmax_agreement == 1.0
            and self.greedy_equal is not False
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def check(folder: Path | str) -> Sequence[CaseResult | DecoderResult]:
    """Every case of a conformance folder, in the order of `cases.json`, or an int4 decoder."""
    folder = Path(folder)
    if is_decoder_folder(folder):
        return [check_decoder(folder)]
    cases = read_cases(folder)
    model, tokenizer = weights.load(folder, "cpu", torch.float32)
    return [check_case(folder, name, cases[name], model, tokenizer) for name in cases]


@torch.inference_mode()
def check_case(
    folder: Path, name: str, spec: dict[str, Any], model: Nvila, tokenizer: Tokenizer
) -> CaseResult:
    """Run one case through the network and compare."""
    expected = read_expected(folder / "expected" / f"{name}.safetensors")
    images = read_images(folder, name, spec)
    fused = prepare(model, tokenizer, message(spec["parts"]), images)
    ids_equal = fused.input_ids == expected["input_ids"].tolist()
    embeds = model.embed(fused.input_ids, fused.media)  # (L, D)
    length_equal = len(embeds) == int(expected["fused_length"])
    greedy = _comparable_greedy(expected["greedy"].tolist(), model.config.language.vocab_size)
    cache = model.new_cache(len(embeds) + len(greedy))
    hidden = model(embeds.unsqueeze(0), cache=cache)[0]  # (L, D)
    answer = continue_greedy(model, hidden[-1], cache, len(greedy)) if greedy else []
    embeds_difference = logits_difference = agreement = None
    if length_equal:
        rows = expected["rows"].long()
        logits = model.logits(hidden[rows])  # (R, V)
        embeds_difference = _difference(embeds[rows], expected["embeds_rows"])
        logits_difference = _largest(
            _difference(logits, expected["logits_rows"]),
            _difference(model.logits(hidden[-1]), expected["last_logits"]),
        )
        if logits.shape == expected["logits_rows"].shape:
            same = logits.argmax(-1) == expected["logits_rows"].argmax(-1)
            agreement = float(same.float().mean())
    return CaseResult(
        case=name,
        tiles_equal=tiles_equal(image_tiles(images, model.config), spec) if images else None,
        ids_equal=ids_equal,
        length_equal=length_equal,
        embeds_difference=embeds_difference,
        logits_difference=logits_difference,
        argmax_agreement=agreement,
        greedy_equal=answer == greedy if greedy else None,
        num_greedy_compared=len(greedy),
    )


def tiles_equal(tiles: Tiles, spec: dict[str, Any]) -> bool:
    """Every tile equals the reference's bit for bit, and so does the grid of dynamic-S2."""
    bytes_ = (tiles.pixels * 127.5 + 127.5).round().to(torch.uint8).numpy()
    hashes = [hashlib.sha256(tile.tobytes()).hexdigest() for tile in bytes_]
    blocks = [tuple(block) for block in spec.get("block_sizes") or () if block]
    return hashes == spec.get("tile_sha256_uint8_chw", []) and blocks == (
        [tiles.block] if tiles.block else []
    )


def _difference(ours: Tensor, theirs: Tensor) -> float | None:
    """The largest absolute difference; None for other shapes or values that are not finite."""
    if ours.shape != theirs.shape:
        return None
    if not ours.numel():
        return 0.0
    largest = float((ours.float() - theirs.float()).abs().max())
    return largest if math.isfinite(largest) else None


def _largest(*differences: float | None) -> float | None:
    known = [difference for difference in differences if difference is not None]
    return max(known) if len(known) == len(differences) else None


def _comparable_greedy(tokens: list[int], vocab_size: int) -> list[int]:
    """The tokens before the first beyond the vocabulary: the reference has extra random columns."""
    outside = (index for index, token in enumerate(tokens) if token >= vocab_size)
    return tokens[: next(outside, len(tokens))]


def to_json(results: Sequence[CaseResult | DecoderResult]) -> list[dict[str, Any]]:
    """The comparison for machines; a number that is not finite becomes null."""
    return [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in result.as_dict().items()
        }
        for result in results
    ]


def table(results: Sequence[CaseResult | DecoderResult], title: str) -> Table:
    """The comparison for people; 'length' says that the fused sequences have other lengths."""
    from rich.table import Table

    rows = [
        _case_cells(result) if isinstance(result, CaseResult) else _decoder_cells(result)
        for result in results
    ]
    view = Table(title=title)
    view.add_column("case", overflow="fold")
    for heading in (*rows[0], ""):
        view.add_column(heading, no_wrap=True)
    for result, cells in zip(results, rows, strict=True):
        name = result.case if isinstance(result, CaseResult) else "decoder"
        view.add_row(name, *cells.values(), "pass" if result.passed else "FAIL")
    return view


def _case_cells(result: CaseResult) -> dict[str, str]:
    greedy = result.greedy_equal
    return {
        "tiles": _word(result.tiles_equal),
        "ids": _word(result.ids_equal),
        "embeds": _number(result.embeds_difference) if result.length_equal else "length",
        "logits": _number(result.logits_difference),
        "argmax": _share(result.argmax_agreement),
        "greedy": "-" if greedy is None else f"{result.num_greedy_compared} {_word(greedy)}",
    }


def _decoder_cells(result: DecoderResult) -> dict[str, str]:
    return {
        "weights": f"{result.num_weights - len(result.different_weights)} of "
        f"{result.num_weights} equal",
        "logits": _number(result.logits_difference),
        "argmax": _share(result.argmax_agreement),
    }


def _share(agreement: float | None) -> str:
    return "-" if agreement is None else f"{math.floor(agreement * 100)} %"


def _word(equal: bool | None) -> str:
    return "-" if equal is None else "equal" if equal else "differ"


def _number(difference: float | None) -> str:
    return "-" if difference is None else f"{difference:.1e}"

# SPDX-License-Identifier: Apache-2.0
"""Reads the files of a conformance folder; whatever is damaged is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from nvila_ros.errors import CheckpointError
from nvila_ros.evaluation.decoder_conformance import is_decoder_folder, read_tensors
from nvila_ros.models.config_files import read_json
from nvila_ros.models.prompt import IMAGE_TOKEN, VIDEO_TOKEN

# The letters are lengths; the same letter is the same length.
REQUIRED_TENSORS = {
    "input_ids": ("I",),
    "fused_length": (),
    "rows": ("R",),
    "embeds_rows": ("R", "D"),
    "logits_rows": ("R", "V"),
    "last_logits": ("V",),
    "greedy": ("G",),
}


def find_folders(folder: Path) -> list[Path]:
    """The folder itself, or those directly in it where only they have the form."""
    if _has_form(folder) or not folder.is_dir():
        return [folder]
    return sorted(path for path in folder.iterdir() if _has_form(path)) or [folder]


def _has_form(folder: Path) -> bool:
    return (folder / "expected").is_dir() or is_decoder_folder(folder)


def read_cases(folder: Path) -> dict[str, Any]:
    """`expected/cases.json`: a description per case."""
    path = folder / "expected" / "cases.json"
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing; give a checkpoint with `expected/` answers, or an int4 decoder "
            "with `quantized/` and `expected.safetensors`"
        )
    cases = read_json(path)
    if not isinstance(cases, dict) or not cases:
        raise CheckpointError(f"{path} lists no cases; copy the folder again")
    for name, spec in cases.items():
        parts = spec.get("parts") if isinstance(spec, dict) else None
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(
                f"{path}: case {name!r} has no list of texts 'parts'; copy the folder again"
            )
    return cases


def message(parts: Sequence[str]) -> str:
    """The user message of a case; media tokens within texts are removed, as in the reference."""
    return "".join(part if part == IMAGE_TOKEN else _without_media(part) for part in parts)


def _without_media(text: str) -> str:
    for token in (IMAGE_TOKEN, VIDEO_TOKEN):
        if token in text:
            text = text.replace(token, "").strip()
    return text


def read_expected(path: Path) -> dict[str, Tensor]:
    """A case's tensors, of shapes that fit each other."""
    tensors = read_tensors(path, REQUIRED_TENSORS)
    lengths: dict[str, int] = {}
    for key, letters in REQUIRED_TENSORS.items():
        shape = tuple(tensors[key].shape)
        known = tuple(lengths.get(letter, letter) for letter in letters)
        if len(shape) != len(letters) or any(
            lengths.setdefault(letter, length) != length
            for letter, length in zip(letters, shape, strict=True)
        ):
            raise CheckpointError(
                f"{path}: {key} has shape {list(shape)}, [{', '.join(map(str, known))}] is "
                "expected; copy it again"
            )
    rows, length = tensors["rows"], int(tensors["fused_length"])
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < length:
        raise CheckpointError(
            f"{path}: rows reach from {int(rows.min())} to {int(rows.max())} of a sequence of "
            f"{length}; copy it again"
        )
    return tensors


def read_images(folder: Path, name: str, spec: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a case, one per part that is `<image>`."""
    count = spec["parts"].count(IMAGE_TOKEN)
    images = []
    for index in range(count):
        path = folder / "expected" / f"{name}_{index}.png"
        try:
            with Image.open(path) as image:
                image.load()
                images.append(image)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); case {name!r} has {count} pictures"
            ) from None
    return images

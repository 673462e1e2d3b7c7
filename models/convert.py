# SPDX-License-Identifier: Apache-2.0
"""Any checkpoint that can be read, written again in the released layout with safetensors."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from nvila_ros.errors import CheckpointError
from nvila_ros.models import weights
from nvila_ros.models.headers import SCALING_SUFFIXES, read_headers
from nvila_ros.models.pickles import TENSOR_INDEX, convert_pickles, has_only_pickles, pickle_files

FLOAT_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# Beside the weights, for people and for Hugging Face's classes.
KEPT_FILES = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "llm/generation_config.json")


def convert(source: Path | str, target: Path | str, dtype: torch.dtype | None = None) -> Path:
    """Load `source` and save it as the new folder `target`; by default in the stored precision.

    The target appears only when it is complete. Host memory holds the whole network once.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise CheckpointError(f"{source} is no folder; give the folder of a checkpoint")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; give a folder that is new or empty")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as workplace:
        readable = _without_pickles(source, Path(workplace) / "source")
        finished = Path(workplace) / "target"
        dtype = dtype or stored_dtype(readable)
        model, tokenizer = weights.load(readable, "cpu", dtype)
        weights.save(finished, model, tokenizer, dtype)
        for name in KEPT_FILES:
            if (source / name).is_file() and not (finished / name).exists():
                shutil.copyfile(source / name, finished / name)
        if target.exists():
            target.rmdir()
        finished.rename(target)
    return target


def stored_dtype(folder: Path) -> torch.dtype:
    """The one float precision of all three parts, float32 where they differ or have another."""
    found = {
        tensor.dtype
        for part in weights.PARTS
        for name, tensor in read_headers(folder / part).items()
        if tensor.dtype.startswith(("F", "BF")) and not name.endswith(SCALING_SUFFIXES)
    }
    return FLOAT_DTYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _without_pickles(source: Path, workplace: Path) -> Path:
    """The source itself, or a folder of links to it with its pickles as safetensors."""
    parts = [part for part in weights.PARTS if has_only_pickles(source / part)]
    if not parts:
        return source
    workplace.mkdir()
    for entry in source.iterdir():
        if entry.name not in parts:
            (workplace / entry.name).symlink_to(entry.resolve())
    for part in parts:
        convert_pickles(source / part, workplace / part)
        pickles = {path.name for path in pickle_files(source / part)}
        for entry in (source / part).iterdir():
            if entry.name not in pickles and entry.name != TENSOR_INDEX:
                (workplace / part / entry.name).symlink_to(entry.resolve())
    return workplace

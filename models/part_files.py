# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder hold a part's weights, and what to do where there are none."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from nvila_ros.errors import CheckpointError
from nvila_ros.models.config_files import read_json

SHIPPED = Path(__file__).resolve().parent / "nano"
PARTS = ("vision_tower", "mm_projector", "llm")
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Left beside weights by trainers; they hold none.
OTHER_PICKLES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")


def checkpoint_folder(folder: Path | str) -> Path:
    """The folder that a user named; CheckpointError says what a name that is none may mean."""
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file; a checkpoint is a folder with config.json and the folders "
            f"{', '.join(PARTS)}: point at that folder"
        )
    if not folder.is_dir():
        name = folder.as_posix()
        advice = "point MODEL (of a node: model_path) at a checkpoint's folder"
        if folder.name == SHIPPED.name:
            advice = f"the shipped model is {SHIPPED}"
        elif _REPOSITORY.fullmatch(name):
            target = shlex.quote(folder.name)
            advice = (
                "if it is the name of a Hugging Face repository, nothing is downloaded on its own; "
                f"run: hf download {name} --local-dir {target} (older: huggingface-cli download), "
                f"then point at {target}"
            )
        raise CheckpointError(f"{folder} is no folder; {advice}")
    if not any(folder.iterdir()):
        raise CheckpointError(
            f"{folder} is empty; a checkpoint has config.json and the folders {', '.join(PARTS)}: "
            "download it again"
        )
    snapshots = sorted((folder / "snapshots").glob("*/config.json"))
    if snapshots and not (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} is a download cache of Hugging Face; point at {snapshots[-1].parent}"
        )
    return folder


def tensor_files(folder: Path) -> dict[Path, frozenset[str]]:
    """The safetensors files of one part, each with the tensors that an index promises to be there.

    One file, or shards: with an index, or numbered so that a missing one is noticed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing; a checkpoint has the folders {', '.join(PARTS)}"
        )
    if (folder / SINGLE_FILE).exists():
        return {folder / SINGLE_FILE: frozenset()}
    if (folder / INDEX_FILE).exists():
        return indexed_files(folder, INDEX_FILE)
    paths = sorted(folder.glob("*.safetensors"))
    if paths:
        _check_numbers(folder, paths)
        return dict.fromkeys(paths, frozenset())
    pickles = pickle_files(folder)
    if pickles:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which can run code, and is refused; "
            f"convert it with: {conversion_command(folder)}"
        )
    raise CheckpointError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; download the weights, or, if you "
        "have them as pickles, turn them into safetensors with: nvila convert SOURCE TARGET"
    )


def indexed_files(folder: Path, index: str) -> dict[Path, frozenset[str]]:
    """The shards of an index, each with the names of its tensors."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index} has no weight_map; download it again")
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        shards.setdefault(str(file), set()).add(name)
    outside = [file for file in shards if Path(file).name != file]
    if outside:
        raise CheckpointError(
            f"{folder / index} names {outside[0]!r}; shards are files beside the index"
        )
    absent = sorted(file for file in shards if not (folder / file).exists())
    if absent:
        raise CheckpointError(
            f"{folder}: {len(absent)} of {len(shards)} shards of {index} are missing: "
            f"{', '.join(absent[:3])}; download them"
        )
    return {folder / file: frozenset(shards[file]) for file in sorted(shards)}


def _check_numbers(folder: Path, paths: list[Path]) -> None:
    """Shards without an index must be all of their kind; other files must be one alone."""
    matches = [match for path in paths if (match := _SHARD.fullmatch(path.name))]
    if len(paths) == 1 and not matches:
        return
    totals = {int(match.group(2)) for match in matches}
    numbers = {int(match.group(1)) for match in matches}
    if len(matches) != len(paths) or len(totals) != 1:
        raise CheckpointError(
            f"{folder} has {len(paths)} safetensors files and no {INDEX_FILE}, among them "
            f"{paths[0].name} and {paths[-1].name}; leave one checkpoint's files in the folder"
        )
    missing = sorted(set(range(1, totals.pop() + 1)) - numbers)
    if missing:
        raise CheckpointError(
            f"{folder} has {len(paths)} shards, number {missing[0]} is missing; download it"
        )


def pickle_files(folder: Path) -> list[Path]:
    """The pickles with weights: those of their index, or all that are not a trainer's."""
    if (folder / PICKLE_INDEX_FILE).exists():
        return [*indexed_files(folder, PICKLE_INDEX_FILE)]
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in PICKLE_SUFFIXES and not path.name.startswith(OTHER_PICKLES)
    )


def conversion_command(folder: Path) -> str:
    """The shell command that writes the checkpoint to which a part belongs as safetensors."""
    source = folder.parent if folder.name in PARTS else folder
    source = source.resolve()
    target = source.with_name(f"{source.name}-safetensors")
    return f"nvila convert {shlex.quote(str(source))} {shlex.quote(str(target))}"

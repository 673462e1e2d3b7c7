# SPDX-License-Identifier: Apache-2.0
"""Older checkpoints' pickles to safetensors, read without running any code that they hold."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nvila_ros.errors import CheckpointError
from nvila_ros.models.config_files import read_json

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_INDEX = "pytorch_model.bin.index.json"
TENSOR_INDEX = "model.safetensors.index.json"
# Left beside weights by trainers; they hold none.
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")


def has_only_pickles(folder: Path) -> bool:
    """Whether a part's weights are pickles and nothing else."""
    return not any(folder.glob("*.safetensors")) and bool(pickle_files(folder))


def pickle_files(folder: Path) -> list[Path]:
    """The files with weights: those of the index, or all that are not a trainer's."""
    if (folder / PICKLE_INDEX).exists():
        names = set(read_json(folder / PICKLE_INDEX).get("weight_map", {}).values())
        return [folder / name for name in sorted(names)]
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(NO_WEIGHTS)
    )


def convert_pickles(source: Path, target: Path) -> None:
    """Write one safetensors file per pickle of `source` and their index into `target`."""
    paths = pickle_files(source)
    target.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, path in enumerate(paths, start=1):
        name = f"model-{number:05d}-of-{len(paths):05d}.safetensors"
        tensors = read_pickle(path)
        twice = sorted(tensors.keys() & weight_map.keys())
        if twice:
            raise CheckpointError(
                f"{path} holds {twice[0]}, which {source / paths[0].name} or another file beside "
                "it holds too; leave one checkpoint's weights in the folder"
            )
        save_file(tensors, target / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (target / TENSOR_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Name -> tensor, each with memory of its own; anything but tensors is refused."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download the shard") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} holds more than weights or is broken, and is not opened ({reason}); "
            "get the checkpoint as safetensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no dictionary of tensors; it is no model's weights")
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path}: {strange[0]} is no tensor; it is no model's weights")
    return {str(name): tensor.detach().contiguous().clone() for name, tensor in content.items()}

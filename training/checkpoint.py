# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: float32 weights in files small enough to carry, replaced atomically."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nvila_ros.errors import CheckpointError

MAX_FILE_BYTES = 15 * 2**20


def save_run(folder: Path, model: nn.Module, heads: nn.Module) -> None:
    """Writes `weights-<n>.safetensors` (model and training heads, float32) under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().float().cpu().contiguous().clone()
        if size + tensor.nbytes > MAX_FILE_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    for number, part in enumerate(parts):
        temporary = folder / f".weights-{number}.tmp"
        save_file(part, temporary)
        temporary.replace(folder / f"weights-{number}.safetensors")


def load_run(folder: str | Path, model: nn.Module, heads: nn.Module | None = None) -> None:
    """Reads what `save_run` wrote into the modules; a missing or extra name is an error."""
    files = sorted(Path(folder).glob("weights-*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no weights-*.safetensors; give a run's folder")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    modules = {"model.": model} if heads is None else {"model.": model, "heads.": heads}
    for prefix, module in modules.items():
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not fit the model: {error}") from None

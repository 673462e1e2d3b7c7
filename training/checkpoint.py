# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: weights and optimizer state in files small enough to carry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nvila_ros.errors import CheckpointError

NETWORK_FILE = "network.json"  # what differs from the small network
MAX_FILE_BYTES = 15 * 2**20


def save_run(
    folder: Path,
    model: nn.Module,
    heads: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Writes `weights-<n>.safetensors` (model and training heads, float32) under `folder`.

    With optimizers also `moments-<n>.safetensors`, their state in bfloat16, for a run that goes on
    from here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    _write(folder, "weights", {k: v.detach().float() for k, v in tensors.items()})
    moments = {
        f"{number}.{index}.{name}": value.detach().bfloat16()
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value.ndim
    }
    if moments:
        _write(folder, "moments", moments)


def _write(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Files of at most MAX_FILE_BYTES, each replaced atomically."""
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        tensor = tensor.cpu().contiguous().clone()
        if size + tensor.nbytes > MAX_FILE_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    for number, part in enumerate(parts):
        temporary = folder / f".{name}-{number}.tmp"
        save_file(part, temporary)
        temporary.replace(folder / f"{name}-{number}.safetensors")


def load_run(folder: str | Path, model: nn.Module | None, heads: nn.Module | None = None) -> None:
    """Reads what `save_run` wrote into the modules; a missing or extra name is an error."""
    tensors = _read(folder, "weights")
    for prefix, module in (("model.", model), ("heads.", heads)):
        if module is None:
            continue
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not fit the model: {error}") from None


def load_moments(folder: str | Path, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Puts saved optimizer state back, as far as parameters still fit; returns how many do."""
    tensors = _read(folder, "moments")
    num_loaded = 0
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            prefix = f"{number}.{index}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if not state or any(v.shape != parameter.shape for v in state.values()):
                continue
            for name, value in state.items():
                optimizer.state[parameter][name] = value.to(parameter)
            if "exp_avg" in state:  # AdamW counts steps; its bias correction is over
                optimizer.state[parameter]["step"] = torch.tensor(
                    1000.0, device=parameter.device if parameter.is_cuda else None
                )
            num_loaded += 1
    return num_loaded


def _read(folder: str | Path, name: str) -> dict[str, torch.Tensor]:
    files = sorted(Path(folder).glob(f"{name}-*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no {name}-*.safetensors; give a run's folder")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    return tensors

# SPDX-License-Identifier: Apache-2.0
"""What was fine-tuned, on the disk: two small files that go onto, or into, a base checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nvila_ros.config import load
from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.convert import convert
from nvila_ros.training.adapters import AdaptConfig, learned_tensors
from nvila_ros.training.sharded import whole

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FORMAT = "nvila_ros adapter 1"
LORA_IN, LORA_OUT = ".lora_A.weight", ".lora_B.weight"  # (rank, inputs) and (outputs, rank)


def save_adapter(
    folder: Path | str, model: nn.Module, config: AdaptConfig, *, writes: bool = True
) -> None:
    """Writes what learns (LoRA, norms, projector), float32; a reader sees all of it or the old.

    Every rank of a sharded network has to call it, one of them `writes`.
    """
    folder = Path(folder)
    learned = learned_tensors(model).items()
    tensors = {name: whole(value).float().cpu().contiguous() for name, value in learned}
    if not writes:
        return
    content = {"format": FORMAT, "adapt": dataclasses.asdict(config)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{WEIGHTS_FILE}.unfinished"
        save_file(tensors, unfinished)
        unfinished.replace(folder / WEIGHTS_FILE)
        unfinished = folder / f".{CONFIG_FILE}.unfinished"
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / CONFIG_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error}); make room or choose another place; an earlier "
            "adapter there is as it was"
        ) from None


def read_adapter(folder: Path | str) -> tuple[AdaptConfig, dict[str, Tensor]]:
    """An adapter's settings and tensors (float32, on the CPU)."""
    folder = Path(folder)
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename or folder / WEIGHTS_FILE} is missing; give a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}, as `nvila train` writes where its recipe adapts"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no readable adapter ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is not of this package (format {FORMAT!r} is expected); "
            "adapters of other tools have other names and cannot be read"
        )
    try:
        return load(AdaptConfig, content.get("adapt", {})), tensors
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None


def merge(adapter: Path | str, source: Path | str, target: Path | str) -> Path:
    """Writes the checkpoint `source` with the adapter added to its weights as the folder `target`.

    The result has the released layout and the source's precision and needs no adapter any more:
    W + alpha / rank * B A, summed in float32. One tensor at a time is in memory.
    """
    config, tensors = read_adapter(adapter)
    left = set(tensors)

    def changed(key: str, tensor: Tensor) -> Tensor:
        if key in tensors:
            left.discard(key)
            return _fitting(tensors[key], tensor, key, adapter)
        name = key.removesuffix(".weight")
        first, second = name + LORA_IN, name + LORA_OUT
        if key == name or first not in tensors:
            return tensor
        left.difference_update((first, second))
        product = config.scale * (tensors[second] @ tensors[first])
        return tensor.float() + _fitting(product, tensor, key, adapter)

    def check() -> None:
        if left:
            raise CheckpointError(
                f"{adapter} has {min(left)}, which {source} has no place for ({len(left)} such); "
                "the adapter was made for another model, or the checkpoint is quantized"
            )

    return convert(source, target, changed=changed, check=check)


def _fitting(value: Tensor, tensor: Tensor, key: str, adapter: Path | str) -> Tensor:
    if value.shape != tensor.shape:
        raise CheckpointError(
            f"{adapter} changes {key} of shape {tuple(value.shape)}, the checkpoint has "
            f"{tuple(tensor.shape)}; the adapter was made for a model of another size"
        )
    return value

# SPDX-License-Identifier: Apache-2.0
"""Whether an engine fits its device, what it takes of it, and what would fit when it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from nvila_ros.errors import ConfigError, KernelError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.footprint import activation_bytes, cache_bytes, num_prompt_tokens
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime_weights import DecoderWeights

COMPLAINTS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
ROOM_FOR_QUESTIONS = 4096  # places of the cache where the network was trained for as many
MOST_FRAMES = 64  # looked at when searching what would fit


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes on the device; the last three are measured by torch and 0 off CUDA."""

    weights: int
    cache: int
    allocated: int  # by tensors, now
    peak_allocated: int
    reserved: int  # by torch's pools, graphs included; the CUDA context comes on top

    @classmethod
    def measure(cls, weights: DecoderWeights, other_bytes: int, cache_bytes: int) -> EngineMemory:
        """Of an engine as it is now."""
        measured = (0, 0, 0)
        if weights.device.type == "cuda":
            measured = (
                torch.cuda.memory_allocated(weights.device),
                torch.cuda.max_memory_allocated(weights.device),
                torch.cuda.memory_reserved(weights.device),
            )
        stored = sum(tensor.nbytes for tensor in _tensors(weights)) + other_bytes
        return cls(
            weights=stored,
            cache=cache_bytes,
            allocated=measured[0],
            peak_allocated=measured[1],
            reserved=measured[2],
        )

    def to_json(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


def _tensors(weights: DecoderWeights) -> list[Tensor]:
    """Every stored tensor once: a tied head is the table."""
    found: dict[int, Tensor] = {}

    def add(part: object) -> None:
        if isinstance(part, Tensor):
            found[part.data_ptr()] = part
        elif part is not None:
            for value in vars(part).values():
                add(value)

    for part in (weights.table, weights.norm, weights.head, *weights.layers):
        add(part)
    return list(found.values())


def num_bytes(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def frames_that_fit(config: NvilaConfig, free_bytes: int) -> int:
    """How many frames a decision can show when this much is left beside the weights; 0 is none."""
    fitting = 0
    for frames in range(1, MOST_FRAMES + 1):
        if cache_bytes(config, frames) + activation_bytes(config, frames) > free_bytes:
            break
        fitting = frames
    return fitting


def check_room(config: NvilaConfig, device: torch.device, model: Nvila, num_frames: int) -> None:
    """ConfigError where cache and activations of so many frames cannot fit beside the weights."""
    if device.type != "cuda":
        return
    free = free_bytes(device)
    stored = [*model.parameters(), *model.buffers()]
    to_move = sum(tensor.nbytes for tensor in stored if tensor.device.type != "cuda")
    needed = to_move + cache_bytes(config, num_frames) + activation_bytes(config, num_frames)
    if needed > free:
        raise ConfigError(_advice(config, num_frames, needed, free, free - to_move))


def free_bytes(device: torch.device) -> int:
    """What torch could take on a GPU, its own unused blocks included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def default_places(config: NvilaConfig, device: torch.device, num_frames: int) -> int:
    """Places of the cache for so many frames; for free questions where network and device allow.

    Weights are on the device already.
    """
    needed = num_prompt_tokens(config, num_frames)
    trained = min(config.language.model_max_length, config.language.max_position_embeddings)
    wanted = max(needed, min(trained, ROOM_FOR_QUESTIONS))
    if device.type != "cuda":
        return wanted
    cache = cache_bytes(config, num_frames)
    left = free_bytes(device) - activation_bytes(config, num_frames)
    return wanted if cache * wanted // needed <= left else needed


@contextlib.contextmanager
def out_of_memory(config: NvilaConfig, device: torch.device, num_frames: int) -> Iterator[None]:
    """The device's own complaint as a ConfigError that says what would fit."""
    try:
        yield
    except (RuntimeError, KernelError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_little(config, device, num_frames) from error


def is_out_of_memory(error: Exception) -> bool:
    """Torch's allocator, a library's workspace or the driver had no more memory."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(each in words for each in COMPLAINTS)


def too_little(config: NvilaConfig, device: torch.device, num_frames: int) -> ConfigError:
    """What to say when the device had no more memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    needed = cache_bytes(config, num_frames) + activation_bytes(config, num_frames)
    return ConfigError(_advice(config, num_frames, needed, free, free))


def _advice(config: NvilaConfig, num_frames: int, needed: int, free: int, left: int) -> str:
    fitting = frames_that_fit(config, max(left, 0))
    if fitting >= num_frames:
        what = "close other programs that use the GPU"
    elif fitting:
        what = f"{fitting} frames would fit: set history.num_frames to {fitting}"
    else:
        what = "not one frame would fit; use a smaller or a quantized checkpoint, or --device cpu"
    return (
        f"the network with {num_frames} frames needs {needed / 2**30:.2f} GiB more on the GPU, "
        f"{free / 2**30:.2f} GiB are free; {what}"
    )

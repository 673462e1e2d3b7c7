# SPDX-License-Identifier: Apache-2.0
"""How much memory a decision needs, from a network's sizes alone, and whether it is there.

The formula for activations is an upper bound of the eager network: at NVILA-Lite-8B's widths and
eight frames in bfloat16 the allocator's peak on a CPU was 16 % (tower) and 21 % (decoder) below it;
`test/models/test_footprint.py` measures the same on a narrower network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.nvila import Nvila

HALF_BYTES = 2
FLOAT_BYTES = 4
GROUP_SIZE = 128  # weights of one row that share a scale and a zero point in W4A16
GROUP_BYTES = 2 * HALF_BYTES  # float16 scale and zero point
NEWLINE_TOKENS = 1  # after a frame, or in the prompt's text where the network adds none
TEXT_TOKENS = 256  # the navigation prompt with a long instruction, and the answer

FORMULA = {
    "weights, fp16": "2 B per parameter",
    "weights, W8A8": "tower's layers: 1 B per weight and 4 B per row; the rest 2 B",
    "weights, W4A16": "decoder's layers: 1/2 B per weight and 4 B per group of 128; the rest 2 B",
    "tokens": "frames x (tokens per frame + 1 newline) + 256 of text",
    "KV cache": "2 x layers x KV heads x head width x tokens x 2 B",
    "activations": "the larger of tower and prefill",
    "tower": "frames x patches x (5 width + 2 MLP width) x 2 B",
    "prefill": "tokens x (7 width + 3 MLP width) x 2 B + vocabulary x 4 B",
}


@dataclass(frozen=True)
class Footprint:
    """Bytes of one network on a device while it decides."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, without the CUDA context."""
        return self.weights + self.cache + self.activations


def footprints(config: NvilaConfig, num_frames: int) -> dict[str, Footprint]:
    """By name of the arithmetic; batch of one prompt with `num_frames` frames."""
    floats = replace(
        config,
        vision=replace(config.vision, quantization=None),
        language=replace(config.language, quantization=None),
    )
    with torch.device("meta"):
        parameters = dict(Nvila(floats).named_parameters())
    half = sum(tensor.numel() for tensor in parameters.values()) * HALF_BYTES
    mixed = sum(_quantized_bytes(name, tensor) for name, tensor in parameters.items())
    rest = cache_bytes(config, num_frames), activation_bytes(config, num_frames)
    return {"fp16": Footprint(half, *rest), "w8a8_w4a16": Footprint(mixed, *rest)}


def _quantized_bytes(name: str, tensor: Tensor) -> int:
    """Matrices of the tower's layers in 8 bits, of the decoder's in 4, all else in 16."""
    is_matrix = tensor.dim() == 2
    if is_matrix and name.startswith("vision_tower.") and ".layers." in name:
        return tensor.numel() + tensor.shape[0] * FLOAT_BYTES
    if is_matrix and name.startswith("llm.") and ".layers." in name:
        num_groups = tensor.shape[0] * -(-tensor.shape[1] // GROUP_SIZE)
        return tensor.numel() // 2 + num_groups * GROUP_BYTES
    return tensor.numel() * HALF_BYTES


def num_prompt_tokens(config: NvilaConfig, num_frames: int) -> int:
    """Tokens of a navigation prompt and its answer."""
    return num_frames * (config.tokens_per_frame + NEWLINE_TOKENS) + TEXT_TOKENS


def cache_bytes(config: NvilaConfig, num_frames: int) -> int:
    """Keys and values of every layer in float16."""
    language = config.language
    width = language.num_key_value_heads * language.head_dim
    tokens = num_prompt_tokens(config, num_frames)
    return 2 * language.num_hidden_layers * width * tokens * HALF_BYTES


def activation_bytes(config: NvilaConfig, num_frames: int) -> int:
    """The most that lives at once: all frames in the tower, or the whole prompt in the decoder."""
    vision, language = config.vision, config.language
    patches = num_frames * vision.grid_side**2
    tower = patches * (5 * vision.hidden_size + 2 * vision.intermediate_size) * HALF_BYTES
    tokens = num_prompt_tokens(config, num_frames)
    prefill = (
        tokens * (7 * language.hidden_size + 3 * language.intermediate_size) * HALF_BYTES
        + language.vocab_size * FLOAT_BYTES
    )
    return max(tower, prefill)


@dataclass(frozen=True)
class Gpu:
    """The graphics card of this machine as it is now."""

    name: str
    total_bytes: int
    free_bytes: int


def find_gpu() -> Gpu | None:
    """The first CUDA device with its free memory, measured; None where there is none."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return Gpu(torch.cuda.get_device_name(0), total, free)

# SPDX-License-Identifier: Apache-2.0
"""In which numbers a stage computes: float8 matrix products (torchao) and float8 optimizer states.

Only wide linears gain: casting costs a pass over inputs and weights, the product saves half its
time. The paper converts linears of the decoder with both sides at least 3584; the head, embeddings
and norms stay as they are, and so do the weights themselves: they are cast anew in every step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nvila_ros.errors import ConfigError, install_hint
from nvila_ros.models.nvila import Nvila

FLOAT8_MULTIPLE = 128  # tokens of a batch are padded to it (the paper's pad_to_multiple_of)
SIDE_MULTIPLE = 16  # of both sides of a float8 product
PARTS = ("llm", "vision_tower", "mm_projector")
# torchao's names. Per tensor: one scale each, E4M3 forward and E5M2 for gradients. Per row: a scale
# for every row and column, E4M3 throughout.
TORCHAO_RECIPES = {"float8_tensor": "tensorwise", "float8_row": "rowwise"}


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The numbers that a stage computes and remembers in."""

    compute: Literal["float32", "bfloat16", "float8_tensor", "float8_row"] = "bfloat16"
    # Where linears become float8: of llm, vision_tower and mm_projector.
    float8_parts: tuple[str, ...] = ("llm",)
    # Both sides of a linear must be at least this (the paper: 3584).
    float8_min_width: int = 3584
    # float8: moments of AdamW in blocks of 256 with a scale each, 2 bytes a parameter instead of 8.
    optimizer_states: Literal["float32", "float8"] = "float32"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.float8_parts) - set(PARTS))
        if unknown:
            raise ConfigError(f"float8_parts has {unknown}; of {', '.join(PARTS)} is expected")
        if self.float8_min_width < SIDE_MULTIPLE:
            raise ConfigError(
                f"float8_min_width is {self.float8_min_width}, expected at least {SIDE_MULTIPLE}"
            )

    @property
    def is_float8(self) -> bool:
        """Whether matrix products are in float8."""
        return self.compute in TORCHAO_RECIPES

    @property
    def dtype(self) -> torch.dtype:
        """Of everything else that is computed."""
        return torch.float32 if self.compute == "float32" else torch.bfloat16

    @property
    def token_multiple(self) -> int:
        """Batches are padded to a multiple of this many tokens."""
        return FLOAT8_MULTIPLE if self.is_float8 else 1


def to_float8(model: Nvila, precision: PrecisionConfig) -> list[str]:
    """Turns the wide linears of the chosen parts into torchao's, in place; returns their names.

    Weights keep dtype and name. Frozen linears, NF4 linears and the head stay. On a GPU without
    float8 products (before sm_89) this is a ConfigError; a CPU emulates them, slowly, for tests.
    """
    if not precision.is_float8:
        return []
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError(
            f"precision {precision.compute!r} needs torchao ({error}); "
            f"choose 'bfloat16', or {install_hint('train')}"
        ) from error
    _check_device(model.device)
    recipe = Float8LinearConfig.from_recipe_name(TORCHAO_RECIPES[precision.compute])
    if model.device.type == "cpu":
        recipe = dataclasses.replace(recipe, emulate=True)
    converted: list[str] = []
    for part in precision.float8_parts:
        chosen = wide_linears(model.get_submodule(part), precision.float8_min_width)
        convert_to_float8_training(
            model.get_submodule(part),
            config=recipe,
            module_filter_fn=lambda _, name, chosen=chosen: name in chosen,
        )
        converted += [f"{part}.{name}" for name in chosen]
    if not converted:
        raise ConfigError(
            f"precision is {precision.compute!r}, but no linear that learns in "
            f"{', '.join(precision.float8_parts)} is {precision.float8_min_width} wide on both "
            "sides; lower float8_min_width or choose 'bfloat16'"
        )
    return converted


def wide_linears(part: nn.Module, min_width: int) -> list[str]:
    """Names of the linears that float8 is worth it for, the head not among them."""
    return [
        name
        for name, module in part.named_modules()
        if type(module) is nn.Linear
        and name != "lm_head"
        and module.weight.requires_grad
        and min(module.weight.shape) >= min_width
        and all(side % SIDE_MULTIPLE == 0 for side in module.weight.shape)
    ]


def _check_device(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        major, minor = torch.cuda.get_device_capability(device)
        raise ConfigError(
            f"this GPU is sm_{major}{minor}; float8 products need sm_89 or newer: choose 'bfloat16'"
        )


def make_adamw(
    groups: Iterable[dict[str, Any]],
    precision: PrecisionConfig,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW over parameter groups, with the moments that the recipe asks for."""
    groups = list(groups)
    if precision.optimizer_states == "float8":
        from nvila_ros.training.fp8_adamw import Float8AdamW

        return Float8AdamW(groups, betas=betas, eps=eps)
    tensors: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
    is_fused = bool(tensors) and all(tensor.is_cuda for tensor in tensors)
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=is_fused)

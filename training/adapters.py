# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a few parameters: layer norms or LoRA in the tower, LoRA or QLoRA in the decoder.

What does not learn is frozen; with QLoRA the decoder's linears are also held in NF4 (half a byte a
weight and one scale per 64, itself in 8 bits). Adapters are peft's, set into the network where its
linears are; the projector learns in full unless it is told not to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nvila_ros.errors import ConfigError, install_hint
from nvila_ros.models.nvila import Nvila

ADAPTER_NAME = "default"  # peft's name of the one adapter that a module has
TOWER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """What of the network learns, and how."""

    # layernorm: the norms of the layers that run (the paper's LN); lora: their linears.
    tower: Literal["full", "frozen", "layernorm", "lora"] = "full"
    projector: Literal["full", "frozen"] = "full"
    # qlora: LoRA over linears in NF4. Embeddings and head learn only in full.
    llm: Literal["full", "frozen", "lora", "qlora"] = "full"
    rank: int = 64  # of LoRA's two matrices
    alpha: float = 16.0  # their product counts alpha / rank times
    dropout: float = 0.05  # of what enters them, while training
    # The tower learns this many times slower than the rest (the paper sweeps 1, 5, 10, 50).
    tower_learning_rate_ratio: float = 10.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"rank is {self.rank} and alpha {self.alpha}; both above zero are expected"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}, expected 0 to below 1")
        if self.tower_learning_rate_ratio < 1.0:
            raise ConfigError(
                f"tower_learning_rate_ratio is {self.tower_learning_rate_ratio}, expected at least "
                "1: the tower learns that many times slower"
            )

    @property
    def scale(self) -> float:
        """What LoRA's product is multiplied with."""
        return self.alpha / self.rank

    @property
    def has_lora(self) -> bool:
        """Whether linears carry adapters: such a network has no released names until merged."""
        return self.tower == "lora" or self.llm in ("lora", "qlora")

    @property
    def is_partial(self) -> bool:
        """Whether anything is adapted or frozen."""
        return (self.tower, self.projector, self.llm) != ("full", "full", "full")


def adapt(
    model: Nvila,
    config: AdaptConfig,
    *,
    device: torch.device | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> Nvila:
    """Freezes, quantizes and injects as the recipe says, in place; returns the model.

    What learns becomes float32 where any part is adapted (run it under autocast on a GPU): steps of
    an adapter are often smaller than half precision resolves. With a `device` the model goes
    there, linear by linear where NF4 is wanted: the device never holds them unpacked. What is
    frozen is kept in `frozen_dtype`; an 8B decoder fits 24 GB only in half precision.
    """
    if not config.is_partial:
        return model if device is None else model.to(device)
    device = model.device if device is None else device
    if model.config.language.quantization or model.config.vision.quantization:
        raise ConfigError(
            "this checkpoint is quantized; fine-tuning starts from float weights (llm: qlora "
            "quantizes them itself)"
        )
    if config.llm == "qlora":
        quantize_nf4(model, device)
    choices = {"vision_tower": config.tower, "mm_projector": config.projector, "llm": config.llm}
    for part, choice in choices.items():
        model.get_submodule(part).requires_grad_(choice == "full")
    if config.tower == "layernorm":
        for norm in running_norms(model):
            norm.requires_grad_(True)
    for parameter in model.parameters():
        dtype = torch.float32 if parameter.requires_grad else frozen_dtype
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.to(device)
    for part, choice in choices.items():
        if choice in ("lora", "qlora"):
            _inject(model.get_submodule(part), config, target_names(model, part))
    return model


def target_names(model: Nvila, part: str) -> list[str]:
    """Linears of a part that LoRA goes to; layers of the tower that never run get none."""
    is_tower = part == "vision_tower"
    stem = "vision_model.encoder.layers" if is_tower else "model.layers"
    count = model.config.num_vision_layers if is_tower else model.config.language.num_hidden_layers
    targets = TOWER_TARGETS if is_tower else LLM_TARGETS
    module = model.get_submodule(part)
    return [
        name
        for name, each in module.named_modules()
        if isinstance(each, nn.Linear)
        and name.startswith(stem)
        and int(name.removeprefix(stem).split(".")[1]) < count
        and name.rpartition(".")[2] in targets
    ]


def running_norms(model: Nvila) -> Iterator[nn.Module]:
    """The tower's norms that its output depends on: `post_layernorm` and unused layers' are not."""
    layers = model.vision_tower.vision_model.encoder.layers[: model.config.num_vision_layers]
    for layer in layers:
        yield layer.get_submodule("layer_norm1")
        yield layer.get_submodule("layer_norm2")


def quantize_nf4(model: Nvila, device: torch.device) -> None:
    """Holds the decoder's linears in NF4 (bitsandbytes) on a device, in place; the head stays."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise ConfigError(
            f"llm: qlora needs bitsandbytes ({error}); choose llm: lora, or {install_hint('qlora')}"
        ) from error
    computed = torch.float32 if device.type == "cpu" else torch.bfloat16
    for name in target_names(model, "llm"):
        parent, _, child = name.rpartition(".")
        dense = model.llm.get_submodule(name)
        with torch.device("meta"):
            packed = Linear4bit(
                dense.in_features,
                dense.out_features,
                bias=dense.bias is not None,
                compute_dtype=computed,
                quant_type="nf4",
            )
        weight = Params4bit(
            dense.weight.data.to(computed),
            requires_grad=False,
            quant_type="nf4",
            compress_statistics=True,
        )
        packed.weight = weight.to(device)
        packed.weight.module = packed
        packed.quant_state = packed.weight.quant_state
        packed.bias = dense.bias
        setattr(model.llm.get_submodule(parent), child, packed)


def _inject(module: nn.Module, config: AdaptConfig, names: list[str]) -> None:
    """peft's LoRA around these linears of a part; the product starts at zero."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"LoRA needs peft ({error}); {install_hint('train')}") from error
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=names,
    )
    inject_adapter_in_model(lora, module, ADAPTER_NAME)
    for part in module.modules():
        if hasattr(part, "lora_A"):
            for name in ("lora_A", "lora_B"):  # peft gives them the dtype of what they go around
                part.get_submodule(name).float()
            part.cast_input_dtype_enabled = False  # type: ignore[assignment]  # autocast does it


def parameter_groups(
    model: nn.Module, learning_rate: float, config: AdaptConfig, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """What learns, the tower at its smaller rate; groups have a `name`, empty ones are left out."""
    learning = [each for each in model.named_parameters() if each[1].requires_grad]
    tower = [parameter for name, parameter in learning if "vision_tower." in name]
    rest = [parameter for name, parameter in learning if "vision_tower." not in name]
    rates = {
        "tower": learning_rate / config.tower_learning_rate_ratio,
        "rest": learning_rate,
    }
    return [
        {"params": group, "lr": rates[name], "weight_decay": weight_decay, "name": name}
        for name, group in (("tower", tower), ("rest", rest))
        if group
    ]


def learned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that learns, by its name without peft's adapter name."""
    return {
        plain_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def plain_name(name: str) -> str:
    """'...q_proj.lora_A.default.weight' -> '...q_proj.lora_A.weight'."""
    return name.replace(f".{ADAPTER_NAME}.", ".").replace("_orig_mod.", "")

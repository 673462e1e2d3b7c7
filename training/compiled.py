# SPDX-License-Identifier: Apache-2.0
"""Layers through torch.compile, one by one: all layers of a stack share one compiled graph.

Norms, rotations, activations, residuals and float8 casts fuse into a few kernels; matrix products
stay cuBLAS's. Lengths are symbolic, so packed sequences of another length compile nothing new.
"""

from __future__ import annotations

import torch
import torch._functorch.config

from nvila_ros.errors import ConfigError
from nvila_ros.models.nvila import Nvila


def compile_layers(model: Nvila, backend: str = "inductor", *, budget: float = 1.0) -> None:
    """Compiles every layer's forward method in place; names and hooks of modules stay.

    Call it after adapters and float8 linears are in, before layers are checkpointed: what is run
    again in the backward pass is then the compiled method.

    `budget` is the share of what a compiled layer would keep for its backward pass that it may
    keep: the rest is made again from it, the cheapest first. It holds for the whole process.
    """
    if not 0.0 <= budget <= 1.0:
        raise ConfigError(f"the activations' budget is {budget}, expected 0 to 1")
    torch._functorch.config.activation_memory_budget = budget
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    layers = [*model.llm.model.layers]
    layers += model.vision_tower.vision_model.encoder.layers[: model.config.num_vision_layers]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)

# SPDX-License-Identifier: Apache-2.0
"""Layers through torch.compile, one by one: all layers of a stack share one compiled graph.

Norms, rotations, activations, residuals and float8 casts fuse into a few kernels; matrix products
stay cuBLAS's. Lengths are symbolic, so packed sequences of another length compile nothing new.
"""

from __future__ import annotations

import torch

from nvila_ros.models.nvila import Nvila


def compile_layers(model: Nvila, backend: str = "inductor") -> None:
    """Compiles every layer's forward method in place; names and hooks of modules stay.

    Call it after adapters and float8 linears are in, before layers are checkpointed: what is run
    again in the backward pass is then the compiled method.
    """
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    layers = [*model.llm.model.layers]
    layers += model.vision_tower.vision_model.encoder.layers[: model.config.num_vision_layers]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)

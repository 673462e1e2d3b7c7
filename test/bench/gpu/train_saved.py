# SPDX-License-Identifier: Apache-2.0
"""Counts what a compiled layer keeps for its backward pass, on a CPU: `train_saved.py [bf16 ...]`.

The graph is cut into forward and backward as torch.compile does it for a GPU; what crosses is
counted, weights excepted. Attention's kernel is the CPU's, which keeps the same tensors.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition
from shapes import config_of
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.language import rotary_table
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.fp8 import PrecisionConfig, to_float8

TOKENS = 128  # any number gives the same count per token


def decoder_layer(network: str, compute: str) -> dict[str, Any]:
    """Bytes per token of one layer of a released size's decoder."""
    config = config_of(network)
    config = replace(config, language=replace(config.language, num_hidden_layers=1, vocab_size=64))
    model = _on_cpu(config, "llm")
    if compute.startswith("float8"):
        to_float8(model, PrecisionConfig(compute=compute))  # type: ignore[arg-type]
    hidden = torch.randn(1, TOKENS, config.language.hidden_size, dtype=torch.bfloat16)
    rotary = tuple(t.bfloat16() for t in rotary_table(config.language, torch.arange(TOKENS)))
    layer = model.llm.model.layers[0]
    return _counted(layer, hidden.requires_grad_(), (rotary, None, None), TOKENS)


def tower_layer() -> dict[str, Any]:
    """Bytes per patch of one layer of the tower; a frame has 1,024."""
    config = config_of("lite8b")
    config = replace(config, vision=replace(config.vision, num_hidden_layers=2))
    model = _on_cpu(config, "vision_tower")
    patches = torch.randn(1, TOKENS, config.vision.hidden_size, dtype=torch.bfloat16)
    layer = model.vision_tower.vision_model.encoder.layers[0]
    return _counted(layer, patches.requires_grad_(), (), TOKENS)


def _on_cpu(config: NvilaConfig, part: str) -> Nvila:
    with torch.device("meta"):
        model = Nvila(config).bfloat16()
    model.get_submodule(part).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.get_submodule(part).parameters():
            parameter.normal_(std=0.02)
    return model


def _counted(layer: Any, hidden: Tensor, others: tuple[Any, ...], rows: int) -> dict[str, Any]:
    kept: list[tuple[str, int]] = []

    def forward_compiler(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        nodes = graph.graph.nodes
        given = {node for node in nodes if node.op == "placeholder"}
        (results,) = (node.args[0] for node in nodes if node.op == "output")
        for node in results[1:]:
            value = node.meta.get("val") if node not in given and hasattr(node, "meta") else None
            if isinstance(value, Tensor):
                shape = "x".join(str(side) for side in value.shape)
                kept.append((f"{value.dtype} {shape}", value.numel() * value.element_size()))
        return graph

    compiler = aot_autograd(
        fw_compiler=forward_compiler,
        bw_compiler=lambda graph, _: graph,
        partition_fn=min_cut_rematerialization_partition,
    )
    torch._dynamo.reset()
    torch.compile(layer.forward, backend=compiler)(hidden, *others)
    total = hidden.nbytes + sum(size for _, size in kept)
    return {
        "kb_per_row": round(total / rows / 1e3, 1),
        "kept": [f"{name}: {size / rows / 1e3:.1f}" for name, size in kept if size > rows * 500],
    }


def main() -> None:
    """One line of JSON per layer."""
    wanted = sys.argv[1:] or ["bfloat16", "float8_tensor", "float8_row", "lite2b", "tower"]
    for name in wanted:
        if name == "tower":
            result = tower_layer()
        elif name == "lite2b":
            result = decoder_layer("lite2b", "bfloat16")
        else:
            result = decoder_layer("lite8b", name)
        print(json.dumps({"layer": name} | result), flush=True)


if __name__ == "__main__":
    main()

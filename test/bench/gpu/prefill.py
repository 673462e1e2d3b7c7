# SPDX-License-Identifier: Apache-2.0
"""Where a prompt's time goes: each op of an 8B decoder layer, and 28 layers in one graph.

python test/bench/gpu/prefill.py [ROWS [KEPT]]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from shapes import random_rows
from timing import gpu_state, rotated_us
from torch import Tensor

from nvila_ros.kernels import prefill
from nvila_ros.kernels.prefill import LayerShape, LayerWeights
from nvila_ros.kernels.w4a16_gemm import w4a16_gate_up, w4a16_matmul
from nvila_ros.models.released import QWEN2_7B

SLOTS = 2304
SHAPE = LayerShape(num_heads=28, num_kv_heads=4, head_dim=128, eps=1e-6)
NUM_LAYERS = QWEN2_7B.num_hidden_layers
WIDTH, INNER, QKV = QWEN2_7B.hidden_size, QWEN2_7B.intermediate_size, 4608
# 2 operations a weight and row, against the dense fp16 rate of the datasheet.
H100_FLOP_S = 989e12


def random_layer(device: torch.device) -> LayerWeights:
    """One layer of Qwen2-7B's size."""
    return LayerWeights(
        input_norm=torch.ones(WIDTH, device=device).half(),
        qkv=random_rows(QKV, WIDTH, device),
        qkv_bias=torch.randn(QKV, device=device).half(),
        output=random_rows(WIDTH, WIDTH, device),
        post_norm=torch.ones(WIDTH, device=device).half(),
        gate_up=random_rows(2 * INNER, WIDTH, device),
        down=random_rows(WIDTH, INNER, device),
    )


class Bench:
    """Layers, caches and rows after a kept prefix."""

    def __init__(self, num_rows: int, num_kept: int, device: torch.device) -> None:
        self.layers = [random_layer(device) for _ in range(NUM_LAYERS)]
        self.caches = [
            torch.randn(2, SHAPE.num_kv_heads, SLOTS, SHAPE.head_dim, device=device).half()
            for _ in self.layers
        ]
        angles = torch.rand(SLOTS, SHAPE.head_dim // 2, device=device)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
        self.places = torch.arange(num_kept, num_kept + num_rows, dtype=torch.int32, device=device)
        self.num_keys = num_kept + num_rows

        def rows(width: int) -> Tensor:
            return torch.randn(num_rows, width, device=device).half()

        self.hidden, self.inner, self.qkv = rows(WIDTH), rows(INNER), rows(QKV)
        self.query = rows(WIDTH).unflatten(1, (SHAPE.num_heads, SHAPE.head_dim))

    def whole(self) -> Tensor:
        """Every layer, one after the other."""
        hidden = self.hidden
        for layer, (k_cache, v_cache) in zip(self.layers, self.caches, strict=True):
            hidden = prefill.prefill_layer(
                hidden,
                layer,
                SHAPE,
                self.cos_sin,
                self.places,
                self.places,
                k_cache,
                v_cache,
                self.num_keys,
            )
        return hidden

    def ops(self) -> dict[str, Callable[[LayerWeights, Tensor], Any]]:
        """One op of a layer with the weights and the caches of that layer."""
        return {
            "rms_norm": lambda layer, cache: prefill.rms_norm(self.hidden, layer.input_norm, 1e-6),
            "qkv": lambda layer, cache: w4a16_matmul(self.hidden, layer.qkv, layer.qkv_bias),
            "rope_cache": lambda layer, cache: prefill.rope_cache(
                self.qkv, self.cos_sin, self.places, self.places, *cache, SHAPE.num_heads
            ),
            "attention": lambda layer, cache: prefill.attention_rows(
                self.query, *cache, self.num_keys
            ),
            "output": lambda layer, cache: w4a16_matmul(
                self.hidden, layer.output, residual=self.hidden
            ),
            "gate_up": lambda layer, cache: w4a16_gate_up(self.hidden, layer.gate_up),
            "down": lambda layer, cache: w4a16_matmul(self.inner, layer.down, residual=self.hidden),
        }


@torch.inference_mode()
def measure(device: torch.device, num_rows: int = 1088, num_kept: int = 0) -> dict[str, Any]:
    """Microseconds of each op (weights rotated over all layers) and milliseconds of the whole."""
    bench = Bench(num_rows, num_kept, device)
    pairs = list(zip(bench.layers, bench.caches, strict=True))
    found: dict[str, Any] = {"rows": num_rows, "kept": num_kept}
    for name, op in bench.ops().items():
        works = [lambda pair=pair, op=op: op(*pair) for pair in pairs]
        found[f"{name}_us"] = rotated_us(works)
    found["whole_ms"] = rotated_us([bench.whole]) / 1e3
    weights = NUM_LAYERS * (WIDTH * (QKV + WIDTH) + 3 * WIDTH * INNER)
    found["linears_floor_ms"] = 2e3 * weights * num_rows / H100_FLOP_S
    return found


def main() -> None:
    """Print one JSON object."""
    rows = [int(word) for word in sys.argv[1:]]
    print(json.dumps(measure(torch.device("cuda"), *rows) | {"gpu": gpu_state()}, indent=1))


if __name__ == "__main__":
    main()

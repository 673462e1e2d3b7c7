# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of the engine in pieces: int4 products where weights are packed, else dense.

Letters: M rows of one pass, D width, N outputs, K inputs, H query heads, d head width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nvila_ros.kernels import decode, prefill
from nvila_ros.kernels.packing import RowsInt4
from nvila_ros.kernels.w4a16_gemm import w4a16_gate_up, w4a16_matmul
from nvila_ros.models.runtime_cache import FixedCache
from nvila_ros.models.runtime_weights import DecoderLayer, DecoderWeights, Matrix

MAX_DECODE_ROWS = 8  # more rows are multiplied by the kernels for prompts


def multiply(
    rows: Tensor, weight: Matrix, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """(M, K) times (N, K) transposed [+ (N,)] [+ (M, N)] -> (M, N)."""
    if not isinstance(weight, RowsInt4):
        product = F.linear(rows, weight, bias)
        return product if residual is None else product + residual
    if len(rows) > MAX_DECODE_ROWS:
        return w4a16_matmul(rows, weight, bias=bias, residual=residual)
    if residual is not None and bias is None:
        return decode.linear_residual(rows, weight, residual)
    product = decode.w4a16_linear(rows, weight, bias)
    return product if residual is None else product + residual


def queries(
    weights: DecoderWeights,
    cache: FixedCache,
    index: int,
    hidden: Tensor,
    positions: Tensor,
    slots: Tensor,
) -> Tensor:
    """Norm, q | k | v, rotation; keys and values go into the cache -> queries (M, H, d)."""
    config, layer = weights.config, weights.layers[index]
    keys, values = cache.keys[index], cache.values[index]
    if isinstance(layer.qkv, RowsInt4) and len(hidden) <= MAX_DECODE_ROWS:
        return decode.qkv_rope(
            hidden, layer.input_norm, config.rms_norm_eps, layer.qkv, layer.qkv_bias,
            cache.cos_sin, positions, slots, keys, values,
        )  # fmt: skip
    normed = prefill.rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
    qkv = multiply(normed, layer.qkv, bias=layer.qkv_bias)
    return prefill.rope_cache(
        qkv, cache.cos_sin, positions, slots, keys, values, config.num_attention_heads
    )


def feed_forward(layer: DecoderLayer, eps: float, hidden: Tensor) -> Tensor:
    """(M, D) -> (M, D) with its residual."""
    if isinstance(layer.gate_up, RowsInt4) and len(hidden) <= MAX_DECODE_ROWS:
        inner = decode.gate_up(hidden, layer.post_norm, eps, layer.gate_up)
    else:
        normed = prefill.rms_norm(hidden, layer.post_norm, eps)
        if isinstance(layer.gate_up, RowsInt4):
            inner = w4a16_gate_up(normed, layer.gate_up)
        else:
            inner = prefill.silu_mul(F.linear(normed, layer.gate_up))
    return multiply(inner, layer.down, residual=hidden)


def next_token(weights: DecoderWeights, hidden: Tensor) -> Tensor:
    """(1, D) before the final norm -> (1,) int32, the most likely token."""
    eps, head = weights.config.rms_norm_eps, weights.head
    if head.scales is not None:
        return decode.head_argmax(hidden, weights.norm, eps, (head.weight, head.scales), None)[0]
    normed = prefill.rms_norm(hidden, weights.norm, eps)
    return F.linear(normed, head.weight).argmax(-1).int()

# SPDX-License-Identifier: Apache-2.0
"""The slow twin of every kernel: plain torch that says what a fast one has to answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.kernels.packing import RowsInt4, from_rows, unpack


def dequantize_int4(qweight: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """(N, K / 8) int32, (N, G) uint8, (N, G) float -> (N, K) in the dtype of the scales.

    w[n, k] = (code[n, k] - zeros[n, g]) * scales[n, g] with g = k // (K / G). The difference is
    an integer of -15..15, exact in every dtype; the product is rounded once.
    """
    codes = unpack(qweight).to(scales.dtype)
    groups = codes.unflatten(1, (scales.shape[1], -1))  # (N, G, group)
    groups.sub_(zeros.to(scales.dtype).unsqueeze(-1)).mul_(scales.unsqueeze(-1))
    return groups.flatten(1)


def w4a16(
    inputs: Tensor, qweight: Tensor, zeros: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(..., K) float -> (..., N): y = x W^T + b, W dequantized in the scales' dtype, then x's."""
    weight = dequantize_int4(qweight, zeros, scales)
    return F.linear(inputs, weight.to(inputs.dtype), bias)


# W8A8: symmetric int8 weights per output, symmetric int8 activations per token.

INT8_LIMIT = 127  # -128 is not used: codes are symmetric
EXACT_FLOAT32_PRODUCTS = 1024  # their sum is below 2**24: exact in float32


def quantize_per_token(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(..., K) float -> codes (..., K) int8 in -127..127 and scales (...) float32 = absmax / 127.

    Half-way values round to even. A row of zeros has the scale 0; a row with a NaN or an infinity
    has a scale that is none either, so that its outputs are NaN.
    """
    values = inputs.float()
    limits = values.abs().amax(dim=-1, keepdim=True)
    codes = (values * (INT8_LIMIT / limits)).round().clamp(-INT8_LIMIT, INT8_LIMIT)
    return codes.nan_to_num(0.0).to(torch.int8), limits.squeeze(-1) / INT8_LIMIT


def quantize_blocks(inputs: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(M, K) float -> codes (M, K) int8, scales (K / block, M) float32: per row and block."""
    parts = [quantize_per_token(part) for part in inputs.split(block, dim=1)]
    return torch.cat([codes for codes, _ in parts], dim=1), torch.stack([s for _, s in parts])


def dequantize_blocks(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """The inverse of `quantize_blocks`: (M, K) float32."""
    steps = scales.t().repeat_interleave(block, dim=1)[:, : codes.shape[1]]
    return codes.float() * steps


def integer_matmul(codes: Tensor, weight: Tensor) -> Tensor:
    """(M, K) int8 times (N, K) int8 transposed -> (M, N) int32, exact."""
    total = torch.zeros(codes.shape[0], weight.shape[0], dtype=torch.int32, device=codes.device)
    for start in range(0, codes.shape[1], EXACT_FLOAT32_PRODUCTS):
        columns = slice(start, start + EXACT_FLOAT32_PRODUCTS)
        total += (codes[:, columns].float() @ weight[:, columns].float().t()).to(torch.int32)
    return total


def w8a8_matmul(
    codes: Tensor,
    scales: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """(M, K) int8, (M,) float32, (N, K) int8, (N,) float32 [, (N,), (M, N)] -> (M, N) in `dtype`.

    Integers are summed exactly; scales, bias and residual are applied in float32, rounded once.
    """
    outputs = integer_matmul(codes, weight).float() * scales[:, None] * weight_scale
    if bias is not None:
        outputs = outputs + bias.float()
    if residual is not None:
        outputs = outputs + residual.float()
    return outputs.to(dtype)


def layer_norm_quantize(
    hidden: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(..., D) -> codes (..., D) int8 and scales (...) float32 of the norm, float32 inside."""
    width = hidden.shape[-1:]
    return quantize_per_token(
        F.layer_norm(hidden.float(), width, weight.float(), bias.float(), eps)
    )


def gelu_quantize(inputs: Tensor, approximate: str = "tanh") -> tuple[Tensor, Tensor]:
    """(..., K) -> codes (..., K) int8 and scales (...) float32 of the GELU, float32 inside."""
    return quantize_per_token(F.gelu(inputs.float(), approximate=approximate))


# Many rows of the decoder (prefill). Letters: M rows, H query heads, Hkv key-value heads, d head
# width, S slots of the cache, T keys in sight.


def dense_rows(weight: RowsInt4) -> Tensor:
    """The dense weight (N, K) in fp16."""
    parts = from_rows(weight)
    return dequantize_int4(parts.qweight, parts.zeros, parts.scales)


def w4a16_rows(
    x: Tensor, weight: RowsInt4, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """(M, K) float, (N,), (M, N) -> x W^T + bias + residual; the sum is rounded before residual."""
    dense = from_rows(weight)
    outputs = w4a16(x, dense.qweight, dense.zeros, dense.scales, bias)
    return outputs if residual is None else outputs + residual


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., D), float32 inside; the normed value is rounded before the weight."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(hidden.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """(M, 2 I): gate columns, then up columns -> silu(gate) * up, float32 inside, rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def rope_cache(
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
) -> Tensor:
    """qkv (M, (H + 2 Hkv) d), cos_sin (S, d) float32 = [cos | sin] by position -> q (M, H, d).

    Row m is turned by positions[m]; its key and value are written at slots[m] of the caches
    (Hkv, S, d). float32 inside, rounded once.
    """
    num_kv_heads, _, width = k_cache.shape
    heads = qkv.unflatten(-1, (-1, width)).float()  # (M, H + 2 Hkv, d)
    query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    cosines, sines = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)

    def turn(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return torch.cat(turned, dim=-1)

    k_cache[:, slots.long()] = turn(key).to(k_cache.dtype).transpose(0, 1)
    v_cache[:, slots.long()] = value.to(v_cache.dtype).transpose(0, 1)
    return turn(query).to(qkv.dtype)


def attention_rows(
    query: Tensor, k_cache: Tensor, v_cache: Tensor, num_keys: int, mask: Tensor | None = None
) -> Tensor:
    """q (M, H, d), caches (Hkv, S, d) -> (M, H d) over the first T = `num_keys` slots.

    Without `mask` (M, T), True where a row may look, row m sees the keys [0, T - M + m].
    """
    num_rows, num_heads, width = query.shape
    keys, values = (
        cache[:, :num_keys].float().repeat_interleave(num_heads // cache.shape[0], dim=0)
        for cache in (k_cache, v_cache)
    )
    if mask is None:
        everything = torch.ones(num_rows, num_keys, dtype=torch.bool, device=query.device)
        mask = everything.tril(num_keys - num_rows)
    scores = query.float().transpose(0, 1) @ keys.transpose(1, 2) / width**0.5  # (H, M, T)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return (weights @ values).transpose(0, 1).flatten(1).to(query.dtype)


# Few rows of the decoder (decode). Letters as above; V tokens of the vocabulary, A allowed ones.


def qkv_rope(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: RowsInt4,
    bias: Tensor | None,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """(M, D) -> q (M, H, d) of the normed rows; rows of W are q | k | v. See `rope_cache`."""
    num_kv_heads, _, width = k_cache.shape
    num_heads = weight.num_outputs // width - 2 * num_kv_heads
    qkv = w4a16_rows(rms_norm(hidden, norm_weight, eps), weight, bias)
    return rope_cache(qkv, cos_sin, positions, slots, k_cache, v_cache, num_heads)


def attention(query: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
    """q (M, H, d) -> (M, H d); row m sees the keys [0, lengths[m]), and is 0 where that is none."""
    num_keys = k_cache.shape[1]
    mask = torch.arange(num_keys, device=query.device) < lengths[:, None]  # (M, S)
    values = v_cache.masked_fill(~mask.any(0)[:, None], 0)  # never written: may hold anything
    return attention_rows(query, k_cache, values, num_keys, mask).nan_to_num(0.0)


def linear_residual(x: Tensor, weight: RowsInt4, residual: Tensor) -> Tensor:
    """(M, K), (M, N) -> residual + x W^T."""
    return w4a16_rows(x, weight, residual=residual)


def gate_up(hidden: Tensor, norm_weight: Tensor, eps: float, weight: RowsInt4) -> Tensor:
    """(M, D) -> (M, I): silu(gate) * up of the normed rows; W holds all gate rows, then all up."""
    return silu_mul(w4a16_rows(rms_norm(hidden, norm_weight, eps), weight))


def head_argmax(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    head: tuple[Tensor, Tensor] | RowsInt4 | Tensor,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """(M, D) -> the best token (M,) int32, and the scores (M, A) float32 of the allowed (A,) int32.

    head: int8 rows (V, D) with scales (V,), int4 rows, or dense rows. Of equal scores the first.
    """
    normed = rms_norm(hidden, norm_weight, eps).float()
    if isinstance(head, RowsInt4):
        head = dense_rows(head)
    rows, scales = head if isinstance(head, tuple) else (head, None)
    if allowed is not None:
        rows, scales = rows[allowed.long()], None if scales is None else scales[allowed.long()]
    scores = normed @ rows.float().t()
    scores = scores if scales is None else scores * scales
    best = scores.argmax(-1)
    if allowed is None:
        return best.int(), None
    return allowed[best].int(), scores

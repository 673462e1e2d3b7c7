# SPDX-License-Identifier: Apache-2.0
"""A tower layer's training step written out by hand: the same sums, fewer passes over memory.

What differs from the compiled layer (`compiled.py`), whose gradients it gives:

- The output projection and the second linear of the MLP add to the residual stream in their
  product, without their biases: the second norm reads the stream as it is plus the projection's
  bias, and writes it plus both. So the stream is rounded three times a layer: after each product
  and at that write.
- Gradients by the norms' weights and by all biases are summed while a row is in hand.
- Two biases of attention need no sum. Rows of a softmax add up to one, so a constant added to all
  keys changes nothing (gradient zero), and one added to all values is added to the output: its
  gradient is W_o^T times that of the output projection's bias.
- Gradients by the three projections' common input are summed in their products.

Attention itself stays torch's. On CUDA the passes are Triton kernels (`tower_triton`), elsewhere
their twins here. `fuse_tower` asks for it, and a layer that has anything unusual (adapters,
float8, frozen or sharded weights, autocast) goes its old way at every call.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_ros.models.nvila import Nvila
from nvila_ros.models.vision import VisionLayer

# Whose gradient by the weight is computed transposed ("fc1", "fc2"): for 4,304 x 1,152 cuBLAS's
# kernel reaches 557 TFLOP/s on an H100, for 1,152 x 4,304 716 to 748 (57,344 rows, bfloat16).
turned_products: frozenset[str] = frozenset({"fc1"})


def norm(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    shift: Tensor | None = None,
    extra: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(R, W) -> layer norm (R, W) of rows + `shift`, that sum + `extra`, mean, 1 / deviation (R,).

    `shift` and `extra` (W,) are both there or both None; sums are rounded where they are written.
    """
    if rows.is_cuda:
        return _kernels().norm(rows, weight, bias, eps, shift, extra)
    values = _shifted(rows, shift)
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    inverse = (variance + eps).rsqrt()
    normed = (values - mean[:, None]) * inverse[:, None] * weight + bias
    stream = rows.clone() if extra is None else (values + extra).to(rows.dtype)
    return normed.to(rows.dtype), stream, mean, inverse


def norm_backward(
    slope: Tensor,
    rows: Tensor,
    around: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient by the norm's input plus `around`, the gradient that passes the norm by.

    Second: gradients by weight and bias (2, W), with the norm's `shift` also by it and by `extra`
    (4, W), in the weight's dtype.
    """
    if rows.is_cuda:
        return _kernels().norm_backward(slope, rows, around, mean, inverse, weight, shift)
    precise = _precise(rows)
    slope, passing = slope.to(precise), around.to(precise)
    hat = (_shifted(rows, shift) - mean[:, None]) * inverse[:, None]
    weighted = slope * weight
    along, level = (weighted * hat).mean(1, keepdim=True), weighted.mean(1, keepdim=True)
    result = passing + inverse[:, None] * (weighted - level - hat * along)
    sums = [(slope * hat).sum(0), slope.sum(0)]
    sums += [] if shift is None else [result.sum(0), passing.sum(0)]
    return result.to(rows.dtype), torch.stack(sums).to(weight.dtype)


def gelu(before: Tensor) -> Tensor:
    """GELU by its tanh approximation."""
    if before.is_cuda:
        return _kernels().gelu(before)
    return F.gelu(before, approximate="tanh")


def gelu_backward(before: Tensor, slope: Tensor) -> Tensor:
    """Turns (R, W) `slope` into the gradient by GELU's input, in place; its columns' sums."""
    if slope.is_cuda:
        return _kernels().gelu_backward(before, slope)
    slope.copy_(torch.ops.aten.gelu_backward(slope, before, approximate="tanh"))
    return column_sums(slope)


def column_sums(values: Tensor) -> Tensor:
    """(R, W) -> (W,)."""
    if values.is_cuda:
        return _kernels().column_sums(values)
    return values.to(_precise(values)).sum(0).to(values.dtype)


class _Projections(torch.autograd.Function):
    """Norm, query, key and value; also a copy of the rows for `_Rest` to add to.

    The value's bias is added here, but its gradient is `_Rest`'s.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float, *weights: Tensor) -> Any:
        norm_weight, norm_bias, query, query_bias, key, key_bias, value, value_bias = weights
        normed, stream, mean, inverse = norm(rows, norm_weight, norm_bias, eps)
        pairs = ((query, query_bias), (key, key_bias), (value, value_bias))
        mixed = [torch.addmm(bias, normed, weight.t()) for weight, bias in pairs]
        ctx.save_for_backward(rows, normed, mean, inverse, norm_weight, query, key, value)
        return *mixed, stream

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        rows, normed, mean, inverse, norm_weight, query, key, value = ctx.saved_tensors
        by_query, by_key, by_value, around = (each.contiguous() for each in slopes)
        slope = by_query @ query
        slope.addmm_(by_key, key)
        slope.addmm_(by_value, value)
        result, sums = norm_backward(slope, rows, around, mean, inverse, norm_weight)
        of_query, of_key, of_value = (each.t() @ normed for each in (by_query, by_key, by_value))
        query_bias = column_sums(by_query)
        of_weights = (of_query, query_bias, of_key, torch.zeros_like(query_bias), of_value, None)
        return result, None, sums[0], sums[1], *of_weights


class _Rest(torch.autograd.Function):
    """Output projection into the stream, norm, MLP into the stream."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, mixed: Tensor, eps: float, value_bias: Tensor, *weights: Tensor
    ) -> Any:
        out, out_bias, norm_weight, norm_bias, first, first_bias, second, second_bias = weights
        ctx.mark_dirty(stream)
        stream.addmm_(mixed, out.t())
        normed, result, mean, inverse = norm(
            stream, norm_weight, norm_bias, eps, out_bias, second_bias
        )
        before = torch.addmm(first_bias, normed, first.t())
        after = gelu(before)
        result.addmm_(after, second.t())
        kept = (mixed, normed, mean, inverse, before, after, out, out_bias, norm_weight)
        ctx.save_for_backward(stream, *kept, first, second)
        ctx.set_materialize_grads(False)
        return stream, result

    @staticmethod
    def backward(ctx: Any, _: None, slope: Tensor) -> Any:
        stream, mixed, normed, mean, inverse, before, after, *weights = ctx.saved_tensors
        out, shift, norm_weight, first, second = weights
        slope = slope.contiguous()
        inner = slope @ second
        of_second = _weight_gradient(slope, after, "fc2")
        first_bias = gelu_backward(before, inner)
        of_first = _weight_gradient(inner, normed, "fc1")
        by_normed = inner @ first
        statistics = (mean, inverse, norm_weight, shift)
        result, sums = norm_backward(by_normed, stream, slope, *statistics)
        of_norm, of_norm_bias, out_bias, second_bias = sums
        value_bias = (out_bias[None] @ out)[0]
        by_mixed, of_out = result @ out, result.t() @ mixed
        of_weights = (of_out, out_bias, of_norm, of_norm_bias, of_first, first_bias)
        by_inputs = (result, by_mixed, None, value_bias)
        return *by_inputs, *of_weights, of_second, second_bias


def fused_layer(layer: VisionLayer, hidden: Tensor) -> Tensor:
    """(F, P, D) -> (F, P, D), as `VisionLayer.forward`, for a layer that `can_fuse` allows."""
    first, second, attention, mlp = (
        *(layer.layer_norm1, layer.layer_norm2),
        *(layer.self_attn, layer.mlp),
    )
    linears = (attention.q_proj, attention.k_proj)
    weights = [each for linear in linears for each in (linear.weight, linear.bias)]
    value, out = attention.v_proj, attention.out_proj
    *projected, stream = _Projections.apply(
        hidden.flatten(0, 1).contiguous(),
        first.eps,
        first.weight,
        first.bias,
        *weights,
        value.weight,
        value.bias.detach(),
    )
    split = (*hidden.shape[:2], attention.num_heads, -1)
    query, key, value_rows = (each.view(split).transpose(1, 2) for each in projected)
    mixed = F.scaled_dot_product_attention(query, key, value_rows)
    mixed = mixed.transpose(1, 2).flatten(2).flatten(0, 1).contiguous()
    modules = (out, second, mlp.fc1, mlp.fc2)
    weights = [each for module in modules for each in (module.weight, module.bias)]
    rows = _Rest.apply(stream, mixed, second.eps, value.bias, *weights)[1]
    return rows.view_as(hidden)


def can_fuse(layer: VisionLayer, hidden: Tensor) -> bool:
    """Whether `fused_layer` gives this layer's output and all gradients that it needs."""
    if not (torch.is_grad_enabled() and layer.training) or layer.mlp.approximate != "tanh":
        return False
    if torch.is_autocast_enabled(hidden.device.type):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    modules = (*linears, mlp.fc1, mlp.fc2, layer.layer_norm1, layer.layer_norm2)
    if any(each._forward_hooks or each._forward_pre_hooks for each in (attention, mlp, *modules)):
        return False
    for number, module in enumerate(modules):
        if type(module) is not (nn.LayerNorm if number >= 6 else nn.Linear):
            return False
        for parameter in (module.weight, module.bias):
            is_plain = type(parameter) is nn.Parameter and parameter.requires_grad
            if not is_plain or parameter.dtype != hidden.dtype:
                return False
    return True


def fuse_tower(model: Nvila) -> Callable[[], None]:
    """Layers of the tower train by `fused_layer` where they can; returns what undoes that.

    Call it after `compile_layers`, before layers are checkpointed.
    """
    tower = model.vision_tower
    layers = tower.vision_model.encoder.layers[: tower.num_layers_to_run]
    before = [layer.forward for layer in layers]
    for layer, forward in zip(layers, before, strict=True):
        layer.forward = functools.partial(_forward, layer, forward)

    def undo() -> None:
        for layer, forward in zip(layers, before, strict=True):
            layer.forward = forward

    return undo


def _forward(layer: Any, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return fused_layer(layer, hidden) if can_fuse(layer, hidden) else forward(hidden)


def _weight_gradient(slope: Tensor, inputs: Tensor, name: str) -> Tensor:
    """(R, M), (R, N) -> (M, N); turned round cuBLAS takes another kernel for the same product."""
    if name in turned_products:
        return (inputs.t() @ slope).t()
    return slope.t() @ inputs


def _shifted(rows: Tensor, shift: Tensor | None) -> Tensor:
    values = rows.to(_precise(rows))
    return values if shift is None else values + shift


def _precise(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


@functools.cache
def _kernels() -> types.ModuleType:
    """Triton is there on CUDA only, and kernels are compiled at their first launch."""
    from nvila_ros.training import tower_triton

    return tower_triton

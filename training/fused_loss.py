# SPDX-License-Identifier: Apache-2.0
"""The head and its cross entropy as one operation: hidden states in, a loss out, never all logits.

Scores of one token take as many numbers as the vocabulary has words: 16,384 tokens of an 8B model
would need 10 GB in float32. Rows are scored a chunk at a time, and since the loss comes last, their
gradients are made right there and the scores forgotten. Rows without a label are not scored at all.

Liger makes chunks of rows * width / words rows: of a packed batch of 84 labelled rows one row each,
and every chunk reads the head three times and its gradient once (110 of a 2B step's 645 ms on an
H100). So few rows are one chunk of ours.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.errors import ConfigError, install_hint

IGNORED = -100  # the label of a row that is not learned


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Who computes the loss."""

    # liger: Liger's Triton kernels (CUDA only); chunked: plain torch; auto: liger where it can run
    # and the labelled rows are more than one chunk.
    implementation: Literal["auto", "liger", "chunked"] = "auto"
    # Rows whose scores are in memory together (chunked).
    chunk_rows: int = 1024

    def __post_init__(self) -> None:
        if self.chunk_rows < 1:
            raise ConfigError(f"chunk_rows is {self.chunk_rows}, expected at least 1")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    config: LossConfig | None = None,
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """Sum over labelled rows of -weight * log softmax(hidden @ head)[label]; a scalar.

    `hidden` (N, D), head `weight` (V, D), `labels` (N,) int64 with -100 where nothing is learned,
    `weights` (N,) of the rows in the sum. The sum is float32 (float64 for float64 input); divide it
    by the number of learned tokens of all ranks and micro-batches. `rows` (M,) are the indices of
    the labelled rows, where the caller knows them: finding them waits for the device.
    """
    config = config or LossConfig()
    if rows is None:
        rows = (labels != IGNORED).nonzero().squeeze(-1)
    if not len(rows):
        return hidden.sum().to(_wide(hidden.dtype)) * 0.0 + weight.sum() * 0.0
    hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
    weights = None if weights is None else weights.index_select(0, rows)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    weight = weight.to(hidden.dtype)
    if chosen_implementation(config, hidden.device, len(rows)) == "liger":
        return _liger(hidden, weight, labels, weights)
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, weights, config.chunk_rows)


def chosen_implementation(config: LossConfig, device: torch.device, num_rows: int) -> str:
    """'liger' or 'chunked' for so many rows; a ConfigError where what was asked for cannot run."""
    is_installed = importlib.util.find_spec("liger_kernel") is not None
    can_run = is_installed and device.type == "cuda"
    if config.implementation == "liger" and not can_run:
        found = f"the loss is on {device.type}" if is_installed else "liger-kernel is not installed"
        raise ConfigError(
            f"loss implementation is 'liger' but {found}; it needs a CUDA device and "
            f"liger-kernel: choose 'auto', or {install_hint('train-gpu')}"
        )
    if config.implementation == "auto":
        return "liger" if can_run and num_rows > config.chunk_rows else "chunked"
    return config.implementation


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The slow twin of Liger's kernels, for any device; gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        chunk_rows: int,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=_wide(hidden.dtype), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        for begin in range(0, len(hidden), chunk_rows):
            part = slice(begin, begin + chunk_rows)
            row_weights = None if weights is None else weights[part]
            loss, scores = _score_rows(hidden[part], weight, labels[part], row_weights)
            total += loss
            if grad_hidden is not None:
                torch.mm(scores, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(scores.t(), hidden[part])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second gradient of the head would be 0.5 to 1.1 GB where memory is fullest.
        # A second backward pass through the same graph is refused by autograd.
        grads = (
            None if grad is None else grad.mul_(grad_output[0].to(grad.dtype))
            for grad in ctx.saved_tensors
        )
        return (*grads, None, None, None)


def _score_rows(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss of a few rows and its gradient by their scores (M, V), in the dtype of `hidden`.

    d(-log softmax(s)[y]) / ds = softmax(s) - onehot(y).
    """
    scores = F.linear(hidden, weight).to(_wide(hidden.dtype))
    normalizer = scores.logsumexp(-1, keepdim=True)  # (M, 1)
    chosen = labels.unsqueeze(-1)
    losses = normalizer - scores.gather(-1, chosen)
    gradient = scores.sub_(normalizer).exp_()
    gradient.scatter_add_(-1, chosen, torch.full_like(losses, -1.0))
    if weights is not None:
        factors = weights.to(gradient.dtype).unsqueeze(-1)
        losses, gradient = losses * factors, gradient.mul_(factors)
    return losses.sum(), gradient.to(hidden.dtype)


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Liger's kernels; weighted rows cost a second pass over the scores."""
    from liger_kernel.ops.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyFunction as Fused,
    )

    with torch.autocast(hidden.device.type, enabled=False):
        options = (None, None, IGNORED, 0.0, 0.0, "sum" if weights is None else "none")
        losses = Fused.apply(hidden, weight, labels, *options)[0]
        return losses if weights is None else (losses * weights.to(losses.dtype)).sum()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32

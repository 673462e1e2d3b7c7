# SPDX-License-Identifier: Apache-2.0
"""Causal attention that stays within each sample of a packed sequence, in four ways of one meaning.

    dense    a block-diagonal mask for `scaled_dot_product_attention`: the slow twin
    split    one causal call per sample: exact, no mask, the default on a CPU
    flex     `flex_attention` with a block mask, compiled on CUDA
    varlen   flash attention over cumulative lengths, CUDA in half precision

An object of this is given to `Nvila.forward` as its `mask`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.errors import ConfigError

Implementation = Literal["auto", "dense", "split", "flex", "varlen"]
IMPLEMENTATIONS = ("auto", "dense", "split", "flex", "varlen")


class SampleAttention:
    """Attention over segments of a sequence of L tokens: (1, heads, L, width) each, same out."""

    def __init__(
        self,
        segments: Sequence[int],
        device: torch.device | str = "cpu",
        implementation: Implementation = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`segments` add up to L (`PackedBatch.segments`); `dtype` is of the queries."""
        device = torch.device(device)
        if implementation not in IMPLEMENTATIONS:
            raise ConfigError(
                f"attention is {implementation!r}; one of {', '.join(IMPLEMENTATIONS)} is expected"
            )
        self.segments = tuple(segments)
        self.implementation = (
            best_implementation(device, dtype) if implementation == "auto" else implementation
        )
        numbers = torch.repeat_interleave(
            torch.arange(len(self.segments)), torch.tensor(self.segments)
        )
        self._attend = getattr(self, f"_prepare_{self.implementation}")(numbers, device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, heads, L, width), keys and values with fewer heads -> (1, heads, L, width)."""
        return self._attend(query, key, value)

    def _prepare_dense(self, numbers: Tensor, device: torch.device) -> Callable:
        mask = dense_mask(self.segments, device)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
            )

        return attend

    def _prepare_split(self, numbers: Tensor, device: torch.device) -> Callable:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = zip(
                *(states.split(self.segments, dim=2) for states in (query, key, value)), strict=True
            )
            is_grouped = query.shape[1] != key.shape[1]
            mixed = [
                F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
                for q, k, v in parts
            ]
            return torch.cat(mixed, dim=2)

        return attend

    def _prepare_flex(self, numbers: Tensor, device: torch.device) -> Callable:
        from torch.nn.attention.flex_attention import create_block_mask

        numbers = numbers.to(device)
        length = len(numbers)

        def same_and_earlier(batch: Any, head: Any, place: Tensor, seen: Tensor) -> Tensor:
            return (place >= seen) & (numbers[place] == numbers[seen])

        mask = create_block_mask(same_and_earlier, None, None, length, length, device=str(device))
        flex = _flex_attention(device.type)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            is_grouped = query.shape[1] != key.shape[1]
            return flex(query, key, value, block_mask=mask, enable_gqa=is_grouped)

        return attend

    def _prepare_varlen(self, numbers: Tensor, device: torch.device) -> Callable:
        ends = torch.tensor([0, *self.segments]).cumsum(0).int()
        if device.type == "cuda":  # the host does not wait for what the device is doing
            ends = ends.pin_memory()
        ends = ends.to(device, non_blocking=True)
        longest = max(self.segments)
        varlen, causal, takes_grouped = _varlen_attention()

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            repeats = query.shape[1] // key.shape[1]
            options = dict(causal)
            if repeats > 1 and takes_grouped:
                options["enable_gqa"] = True
            elif repeats > 1:
                key, value = (s.repeat_interleave(repeats, dim=1) for s in (key, value))
            rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # (L, heads, w)
            mixed = varlen(*rows, ends, ends, longest, longest, **options)
            return mixed.transpose(0, 1).unsqueeze(0)

        return attend


def dense_mask(segments: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """(L, L) bool, True where a token may look: itself and what came before it in its segment."""
    numbers = torch.repeat_interleave(
        torch.arange(len(segments)), torch.tensor(tuple(segments))
    ).to(device)
    length = len(numbers)
    same = numbers[:, None] == numbers[None, :]
    return same & torch.ones(length, length, dtype=torch.bool, device=device).tril()


def best_implementation(device: torch.device, dtype: torch.dtype) -> Implementation:
    """varlen where flash attention can run, flex on other GPUs, split on a CPU."""
    if device.type != "cuda":
        return "split"
    is_half = dtype in (torch.float16, torch.bfloat16)
    if is_half and torch.cuda.get_device_capability(device) >= (8, 0) and has_varlen():
        return "varlen"
    return "flex"


def has_varlen() -> bool:
    """Whether this torch has flash attention over cumulative lengths."""
    try:
        _varlen_attention()
    except ImportError:
        return False
    return True


@cache
def _varlen_attention() -> tuple[Callable, dict[str, Any], bool]:
    """The function, how it is told to be causal, and whether it takes grouped heads."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}
    return varlen_attn, causal, "enable_gqa" in names


@cache
def _flex_attention(device_type: str) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    if device_type != "cuda":
        return flex_attention
    compiled: Callable = torch.compile(flex_attention, dynamic=True)
    return compiled

# SPDX-License-Identifier: Apache-2.0
"""One token through a whole int4 decoder: from the last token to the next, all on the device."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nvila_ros.kernels import decode, decode_persistent, decode_persistent_plan, decode_plan
from nvila_ros.kernels.decode_persistent_plan import OLDEST_CAPABILITY
from nvila_ros.kernels.packing import RowsInt4

log = logging.getLogger(__name__)
PROBE_SLOTS = 48  # of the cache, filled at random to compare both ways
SETTLED_SLOTS = 1024  # in sight while places of the exchange are tried
SELF_CHECK_TOLERANCE = 5e-2  # relative, of the last layer's output: rounding stays far below
PROBE_TOKENS, EQUAL_TOKENS = (
    4,
    3,
)  # of so many next tokens, so many are the same: rounding may turn one


class StepLayer(Protocol):
    """One layer; rows of qkv are q | k | v, rows of gate_up all gate, then all up."""

    @property
    def input_norm(self) -> Tensor: ...  # (D,)
    @property
    def qkv(self) -> RowsInt4: ...
    @property
    def qkv_bias(self) -> Tensor | None: ...
    @property
    def output(self) -> RowsInt4: ...
    @property
    def post_norm(self) -> Tensor: ...
    @property
    def gate_up(self) -> RowsInt4: ...
    @property
    def down(self) -> RowsInt4: ...


@dataclass(frozen=True, kw_only=True)
class StepWeights:
    """The whole decoder, float16 but for the packed matrices."""

    table: Tensor  # (V, D) embeddings
    layers: Sequence[StepLayer]
    norm: Tensor  # (D,)
    head: Tensor  # (V, D) int8
    head_scales: Tensor  # (V,) float32


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """How the rows of q | k | v divide into heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float


class DecodeStep:
    """Greedy decoding without the host: `launch` reads `token`, writes the next one over it.

    token (1,), position (1,): int32; the token to read, and its rotary position and cache slot.
    history (S + 1,): int32; the token that was read at each position, the newest one included.
    """

    def __init__(
        self,
        weights: StepWeights,
        shape: StepShape,
        keys: Tensor,
        values: Tensor,
        cos_sin: Tensor,
        *,
        is_persistent: bool | None = None,
        has_head: bool | None = False,
    ) -> None:
        """keys, values (L, Hkv, S, d) float16; cos_sin (S, d) float32 = [cos | sin] by position.

        is_persistent: all layers as one launch, on Hopper and newer, where the GPU has room for it;
        None: where it agrees with the kernels, tried once.
        has_head: whether that launch goes on to the next token, instead of a launch for it; None:
        where both agree and it is faster, tried once.
        """
        self.weights, self.shape = weights, shape
        self.keys, self.values, self.cos_sin = keys, values, cos_sin
        device = keys.device
        width, inner = weights.table.shape[1], weights.layers[0].down.num_inputs
        place = torch.zeros(2, dtype=torch.int32, device=device)
        self._place = place
        self.position, self._length = place[:1], place[1:]
        self.token = torch.zeros(1, dtype=torch.int32, device=device)
        self.history = torch.zeros(keys.shape[2] + 1, dtype=torch.int32, device=device)
        kind = weights.table.dtype
        self._hidden = torch.zeros(1, width, dtype=kind, device=device)
        self._query = torch.zeros(1, shape.num_heads, shape.head_dim, dtype=kind, device=device)
        self._mixed = torch.zeros(1, shape.num_heads * shape.head_dim, dtype=kind, device=device)
        self._inner = torch.zeros(1, inner, dtype=kind, device=device)

        self._persistent: decode_persistent.PersistentLayers | None = None
        if is_persistent is not False:
            made = self._make_persistent()
            if is_persistent or (made is not None and self._agrees(made)):
                self._persistent = made
        if self._persistent is not None:
            is_possible = has_head or (has_head is None and self._heads_agree(self._persistent))
            _set_head(self._persistent, bool(is_possible))
            self._settle(self._persistent, chooses_head=bool(is_possible) and has_head is None)

    def _make_persistent(self) -> decode_persistent.PersistentLayers | None:
        """None where the GPU does not do it or has no room."""
        weights, shape = self.weights, self.shape
        tensors = (weights.table, self.keys, self.values)
        if not all(decode.is_fast(each) and each.is_contiguous() for each in tensors):
            return None
        if torch.cuda.get_device_capability(self.keys.device) < OLDEST_CAPABILITY:
            return None
        sizes = decode_persistent_plan.Sizes(
            hidden=weights.table.shape[1],
            intermediate=weights.layers[0].down.num_inputs,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            num_layers=len(weights.layers),
        )
        device = decode_plan.device_of(self.keys.device.index)
        cut = decode_persistent_plan.plan(sizes, device)
        return None if cut is None else self._persistent_layers(cut)

    def _persistent_layers(
        self, cut: decode_persistent_plan.Cut
    ) -> decode_persistent.PersistentLayers:
        layers = self.weights.layers
        matrices = [(each.qkv, each.output, each.gate_up, each.down) for each in layers]
        vectors = [(each.qkv_bias, each.input_norm, each.post_norm) for each in layers]
        head = decode_persistent.HeadWeights(
            norm=self.weights.norm, rows=self.weights.head, scales=self.weights.head_scales
        )
        return decode_persistent.PersistentLayers(
            cut, matrices, vectors, self.keys, self.values, head
        )

    @contextmanager
    def _borrowed(self, first: int, num_slots: int, *, is_random: bool) -> Iterator[None]:
        """Slots of the cache to try something in; leaves the step as it was made."""
        caches = [each[:, :, first : first + num_slots] for each in (self.keys, self.values)]
        before = [each.clone() for each in caches]
        for cache in caches if is_random else ():
            cache.normal_(generator=torch.Generator(cache.device).manual_seed(0))
        yield
        for cache, old in zip(caches, before, strict=True):
            cache.copy_(old)
        self.history.zero_()
        self.begin(torch.zeros_like(self.token), 0)

    def _agrees(self, persistent: decode_persistent.PersistentLayers) -> bool:
        """Whether both ways give one token the same output; leaves the step as it was made."""
        num_slots = min(PROBE_SLOTS, self.keys.shape[2])
        found = []
        with self._borrowed(0, num_slots, is_random=True):
            for way in (None, persistent):
                self._persistent = way
                self.begin(torch.zeros_like(self.token), num_slots - 1)
                self.launch()
                found.append(self._hidden.float().clone())
            self._persistent = None
        error = float((found[1] - found[0]).norm() / found[0].norm())
        if not error < SELF_CHECK_TOLERANCE:  # what is no number is no agreement
            log.warning(
                "the decode step in one launch is off by %.1e here (%.0e expected at most): its "
                "kernels run one by one instead; please report the GPU and the model",
                error, SELF_CHECK_TOLERANCE,
            )  # fmt: skip
        return error < SELF_CHECK_TOLERANCE

    def _heads_agree(self, persistent: decode_persistent.PersistentLayers) -> bool:
        """Whether both heads go on alike from the same places; leaves the step as it was made."""
        num_slots = min(PROBE_SLOTS, self.keys.shape[2])
        found: dict[bool, list[list[int]]] = {False: [], True: []}
        with self._borrowed(0, num_slots, is_random=True):
            for has_head, ends in found.items():
                _set_head(persistent, has_head)
                for first in range(PROBE_TOKENS):
                    self.begin(torch.full_like(self.token, first), num_slots - 1)
                    self.launch()
                    kept = self.history[num_slots : num_slots + 1]
                    ends.append(torch.cat((self._place, self.token, kept)).tolist())
        num_equal = sum(map(list.__eq__, found[False], found[True]))
        if num_equal < EQUAL_TOKENS:
            log.warning(
                "the head inside the decode step's launch gives other tokens here (%s, expected "
                "%s): it stays a launch of its own; please report the GPU and the model",
                found[True], found[False],
            )  # fmt: skip
        return num_equal >= EQUAL_TOKENS

    def _settle(
        self, persistent: decode_persistent.PersistentLayers, *, chooses_head: bool = False
    ) -> None:
        """Chooses where its blocks meet, by whole steps; leaves the step as it was made.

        chooses_head: also whether the head inside the launch stays, which is tried first.
        """
        num_steps = decode_persistent.TIMED_STEPS + 1
        first = min(SETTLED_SLOTS, self.keys.shape[2]) - num_steps
        if first < 0:
            return

        def series_ms() -> float:
            self.begin(torch.zeros_like(self.token), first)
            return decode_persistent.steps_ms(self.launch)

        with self._borrowed(first, num_steps, is_random=False):
            decode_persistent.settle(persistent, series_ms)
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(decode_persistent.FINAL_ROUNDS if chooses_head else 0):
                for has_head in (True, False, False, True):  # there and back
                    _set_head(persistent, has_head)
                    times[has_head].append(series_ms())
            if chooses_head:
                inside, apart = statistics.median(times[True]), statistics.median(times[False])
                _set_head(persistent, inside < apart)
                log.debug("head inside the launch: %.4f ms a step, apart: %.4f", inside, apart)

    def begin(self, token: Tensor, position: int) -> None:
        """Sets what the next `launch` reads; (1,) of any integer type."""
        self.token.copy_(token)
        self.history[position : position + 1].copy_(token)
        self._place.copy_(torch.tensor([position, position + 1], dtype=torch.int32))

    def launch(self) -> None:
        """Queues the step on the current stream."""
        weights, hidden = self.weights, self._hidden
        if self._persistent is not None:
            self._persistent.launch(
                self.token, self._place, weights.table, self.cos_sin, hidden, self.shape.eps,
                self.history,
            )  # fmt: skip
            if self._persistent.cut.has_head:
                return
        else:
            decode.embed(self.token, weights.table, out=hidden)
            for index, layer in enumerate(weights.layers):
                self._launch_layer(index, layer)
        head = (weights.head, weights.head_scales)
        decode.head_argmax(
            hidden, weights.norm, self.shape.eps, head,
            out=self.token, position=self._place, history=self.history,
        )  # fmt: skip

    def _launch_layer(self, index: int, layer: StepLayer) -> None:
        hidden, eps = self._hidden, self.shape.eps
        keys, values = self.keys[index], self.values[index]
        decode.qkv_rope(
            hidden, layer.input_norm, eps, layer.qkv, layer.qkv_bias, self.cos_sin,
            self.position, self.position, keys, values, out=self._query,
        )  # fmt: skip
        decode.attention(
            self._query, keys, values, self._length, out=self._mixed, is_cache_ready=True
        )
        decode.linear_residual(self._mixed, layer.output, hidden, out=hidden)
        decode.gate_up(hidden, layer.post_norm, eps, layer.gate_up, out=self._inner)
        decode.linear_residual(self._inner, layer.down, hidden, out=hidden)


def _set_head(persistent: decode_persistent.PersistentLayers, has_head: bool) -> None:
    persistent.cut = replace(persistent.cut, has_head=has_head)

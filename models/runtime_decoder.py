# SPDX-License-Identifier: Apache-2.0
"""The decoder of the engine: reads many rows into the fixed cache, or steps token by token.

Letters: M rows of one pass, D width, S places of the cache, R rows of a tree of answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_ros.kernels import prefill
from nvila_ros.models.runtime_cache import FixedCache, on_device
from nvila_ros.models.runtime_graphs import Function, GraphPool, Graphs
from nvila_ros.models.runtime_layers import feed_forward, multiply, next_token, queries
from nvila_ros.models.runtime_step import make_step
from nvila_ros.models.runtime_weights import DecoderWeights
from nvila_ros.models.trie import TokenTrie

STEPS_AT_ONCE = 4  # tokens decoded between two looks at them


@dataclass(frozen=True)
class Rows:
    """Where the rows of one pass stand; the first `num_prompt` are causal, a tree's rows follow."""

    num_prompt: int
    num_keys: int  # places of the cache in use after the prompt's rows
    positions: Tensor  # (M,) int32: what the angles count
    slots: Tensor  # (M,) int32: places in the cache
    tree_mask: Tensor | None  # (R, num_keys + R) bool: where a tree's row may look


def lay_out(start: int, num_prompt: int, tree: TokenTrie | None, device: torch.device) -> Rows:
    """Rows that follow `start` kept ones: a prompt's, then all rows of a tree after it."""
    num_keys = start + num_prompt
    places = list(range(start, num_keys))
    if tree is None or not tree.tokens:
        slots = on_device(places, torch.int32, device)
        return Rows(num_prompt, num_keys, slots, slots, None)
    num_rows = len(tree.tokens)
    positions = places + [num_keys + depth for depth in tree.depths]
    places += range(num_keys, num_keys + num_rows)
    mask = torch.cat((torch.ones(num_rows, num_keys, dtype=torch.bool), tree.visibility), dim=1)
    both = on_device([positions, places], torch.int32, device)
    return Rows(num_prompt, num_keys, both[0], both[1], mask.to(device, non_blocking=True))


class Decoder:
    """Weights and cache; every pass writes the cache, none of them waits for the device."""

    def __init__(self, weights: DecoderWeights, cache: FixedCache, pool: GraphPool) -> None:
        self.weights = weights
        self.cache = cache
        self.step = make_step(weights, cache)
        self._pool = pool
        self._reads = Graphs(pool)
        self._has_time = False  # nobody waits for what runs now
        self._launch = self.step.launch
        is_cuda = weights.device.type == "cuda"
        # Brings tokens to the host, so that the next step does not wait for the copy.
        self._courier = torch.cuda.Stream(weights.device) if is_cuda else None
        self._landed = torch.zeros(cache.max_tokens + 1, dtype=torch.int32, pin_memory=is_cuda)

    def prepare(self) -> None:
        """Captures the step; what the cache holds at its first places is lost."""
        self.step.begin(torch.zeros(1, dtype=torch.int32, device=self.weights.device), 0)
        self._launch = self._pool.capture(self.step.launch)

    def read(
        self,
        embeds: Tensor,
        start: int,
        tree: TokenTrie | None,
        wanted: Sequence[int],
        tokens: Sequence[int] = (),
    ) -> Tensor:
        """(M, D) rows after `start` kept ones -> what the wanted rows (W,) say.

        The last rows are the tree's. With `tokens` (A,): their scores (W, A) float32; without: the
        states before the final norm (W, D). A layout that comes again is replayed as a graph.
        """
        device = embeds.device

        def make() -> Function:
            num_prompt = len(embeds) - (len(tree.tokens) if tree else 0)
            rows = lay_out(start, num_prompt, tree, device)
            places, ids = (on_device(values, torch.long, device) for values in (wanted, tokens))

            def work(inputs: Tensor) -> Tensor:
                states = self._read(inputs, rows, places)
                return self._scores(states, ids) if tokens else states

            return work

        key = (len(embeds), start, tree, tuple(wanted), tuple(tokens))
        return self._reads.run(key, make, embeds)

    def catch_up(self) -> int:
        """Captures the layouts that were read once, when there is time for it; how many."""
        self._has_time = True
        try:
            return self._reads.catch_up()
        finally:
            self._has_time = False

    def forget_layouts(self) -> None:
        """Layouts of a warm-up need no graphs."""
        self._reads = Graphs(self._pool)

    def _read(self, embeds: Tensor, rows: Rows, wanted: Tensor) -> Tensor:
        """The last layer's outputs are computed for the wanted rows alone."""
        weights, eps = self.weights, self.weights.config.rms_norm_eps
        hidden = embeds
        for index, layer in enumerate(weights.layers):
            mixed = self._attend(index, hidden, rows)
            if index == len(weights.layers) - 1:
                hidden, mixed = hidden[wanted], mixed[wanted]
            hidden = feed_forward(layer, eps, multiply(mixed, layer.output, residual=hidden))
        return hidden

    def _scores(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(W, D) states before the final norm, (A,) int64 -> (W, A) float32 scores."""
        weights = self.weights
        normed = prefill.rms_norm(hidden, weights.norm, weights.config.rms_norm_eps)
        return normed.float() @ weights.head.rows(tokens).t()

    def answer(self, hidden: Tensor, num_kept: int, max_new_tokens: int) -> Iterator[list[int]]:
        """Tokens after the state (1, D) that ended `num_kept` rows, a few at a time.

        While the host looks at some of them, the device works on those that follow.
        """
        self.step.begin(next_token(self.weights, hidden), num_kept)
        counts = [STEPS_AT_ONCE] * (max_new_tokens // STEPS_AT_ONCE)
        counts += [max_new_tokens % STEPS_AT_ONCE] if max_new_tokens % STEPS_AT_ONCE else []
        waiting: deque[Callable[[], list[int]]] = deque()
        first = 0
        for count in counts:
            for _ in range(count if first else count - 1):
                self._launch()
            begin = num_kept + first
            waiting.append(self._fetch(begin, begin + count))
            first += count
            if len(waiting) > 1:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def _fetch(self, begin: int, end: int) -> Callable[[], list[int]]:
        """Starts to bring the history's tokens to the host; what is returned waits for them."""
        landed, found = self._landed[begin:end], self.step.history[begin:end]
        courier = self._courier
        if courier is None:
            landed.copy_(found)
            return landed.tolist
        courier.wait_stream(torch.cuda.current_stream(found.device))
        with torch.cuda.stream(courier):
            landed.copy_(found, non_blocking=True)  # nothing writes these places before `begin`
            event = courier.record_event()

        def wait() -> list[int]:
            event.synchronize()
            return landed.tolist()

        return wait

    def _attend(self, index: int, hidden: Tensor, rows: Rows) -> Tensor:
        """(M, D) -> mixed values (M, H d): the prompt's rows are causal, the tree's have a mask."""
        keys, values = self.cache.keys[index], self.cache.values[index]
        query = queries(self.weights, self.cache, index, hidden, rows.positions, rows.slots)
        prompt = prefill.attention_rows(
            query[: rows.num_prompt], keys, values, rows.num_keys, may_plan=self._has_time
        )
        mask = rows.tree_mask
        if mask is None:
            return prompt
        tree = query[rows.num_prompt :].contiguous()
        return torch.cat((prompt, prefill.attention_rows(tree, keys, values, mask.shape[1], mask)))

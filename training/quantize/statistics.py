# SPDX-License-Identifier: Apache-2.0
"""What the inputs of linears look like over the calibration prompts, gathered by hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nvila_ros.training.quantize.rounding import GROUP

ROWS_PER_INPUT = 2


class InputStatistics:
    """Running figures of one linear's inputs (rows, K) in float32.

    mean_magnitude (K,): mean |x| of each channel; largest (K,): max |x|
    gram (K, K) or (G, 128, 128): mean x x^T over all inputs, or inside each group of them where
    K is above `most_inputs`; only if asked for
    """

    def __init__(self, most_inputs: int = 0) -> None:
        self.num_rows = 0
        self._most_inputs = most_inputs
        self._sum_magnitude: Tensor | None = None
        self._sum_gram: Tensor | None = None
        self._largest: Tensor | None = None

    def add(self, inputs: Tensor, *, with_gram: bool) -> None:
        """Takes (..., K)."""
        rows = inputs.detach().flatten(0, -2).float()
        magnitude = rows.abs()
        largest, total = magnitude.amax(0), magnitude.sum(0)
        self.num_rows += rows.shape[0]
        if self._sum_magnitude is None or self._largest is None:
            self._sum_magnitude, self._largest = total, largest
        else:
            self._sum_magnitude += total
            self._largest = torch.maximum(self._largest, largest)
        if with_gram:
            if rows.shape[1] > self._most_inputs:
                rows = rows.unflatten(1, (-1, GROUP)).transpose(0, 1)  # (G, rows, 128)
            gram = rows.transpose(-2, -1) @ rows
            self._sum_gram = gram if self._sum_gram is None else self._sum_gram.add_(gram)

    @property
    def mean_magnitude(self) -> Tensor:
        """(K,) float32."""
        assert self._sum_magnitude is not None, "no prompt was seen"
        return self._sum_magnitude / self.num_rows

    @property
    def largest(self) -> Tensor:
        """(K,) float32."""
        assert self._largest is not None, "no prompt was seen"
        return self._largest

    def gram(self, divisor: Tensor) -> Tensor:
        """(G, 128, 128) of the inputs divided by (K,) per channel."""
        assert self._sum_gram is not None, "the second moments were not asked for"
        gram = self._sum_gram
        if gram.dim() == 2:
            blocks = range(0, len(gram), GROUP)
            gram = torch.stack([gram[at : at + GROUP, at : at + GROUP] for at in blocks])
        parts = divisor.unflatten(0, (-1, GROUP))  # (G, 128)
        return gram / self.num_rows / (parts.unsqueeze(2) * parts.unsqueeze(1))

    def full_gram(self, divisor: Tensor) -> Tensor | None:
        """(K, K) of the inputs divided by (K,) per channel.

        None where only groups were summed, or over too few rows to say how channels go together.
        """
        if self._sum_gram is None or self._sum_gram.dim() != 2:
            return None
        if self.num_rows < ROWS_PER_INPUT * len(self._sum_gram):
            return None
        return self._sum_gram / self.num_rows / (divisor.unsqueeze(1) * divisor)


class Recorder:
    """Watches named linears of a layer; `kept` inputs are stored for the search.

    Of the first linear they are whole sequences, of the others every `stride`-th token.
    """

    def __init__(
        self,
        layer: nn.Module,
        names: tuple[str, ...],
        *,
        with_gram: bool,
        most_inputs: int = 0,
        stride: int = 1,
    ) -> None:
        self._layer = layer
        self._stride = {name: stride if number else 1 for number, name in enumerate(names)}
        self._with_gram = with_gram
        self.statistics = {name: InputStatistics(most_inputs) for name in names}
        self.kept: dict[str, list[Tensor]] = {name: [] for name in names}
        self.is_keeping = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Every forward pass of the layer inside counts."""
        handles = [
            self._layer.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in self.statistics
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.statistics[name].add(inputs[0], with_gram=self._with_gram)
            if self.is_keeping:
                self.kept[name].append(inputs[0].detach()[:, :: self._stride[name]])

        return look

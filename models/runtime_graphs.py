# SPDX-License-Identifier: Apache-2.0
"""Work of fixed shapes as CUDA graphs: captured once, replayed without the host's launch times."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NUM_WARM_UP = 2  # calls before the capture: kernels compile, libraries take their workspaces


class GraphPool:
    """The memory that all graphs of one engine share: no two of them run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._handle = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` as a graph; off CUDA, `work` itself.

        It may read and write only tensors that outlive it, and what it returns is dropped.
        """
        if self._handle is None:
            return work
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP):
                work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._handle):
            work()
        return graph.replay


class GraphedFunction:
    """A function of one tensor whose graphs are kept by the tensor's first dimension.

    `sizes` are captured when `prepare` is called; any other size runs as it is.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], pool: GraphPool) -> None:
        self._function = function
        self._pool = pool
        self._graphs: dict[int, tuple[Tensor, list[Tensor], Callable[[], None]]] = {}

    def prepare(self, example: Tensor) -> None:
        """Captures the function for inputs of the example's shape and dtype."""
        if self._pool.device.type != "cuda":
            return
        source = example.clone()
        results: list[Tensor] = []

        def work() -> None:
            results[:] = [self._function(source)]

        self._graphs[len(example)] = (source, results, self._pool.capture(work))

    def __call__(self, inputs: Tensor) -> Tensor:
        """The function's result, in memory of its own."""
        if len(inputs) not in self._graphs:
            return self._function(inputs)
        source, results, replay = self._graphs[len(inputs)]
        source.copy_(inputs, non_blocking=True)
        replay()
        return results[0].clone()

# SPDX-License-Identifier: Apache-2.0
"""A function of tensors as a CUDA graph: one launch instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NUM_WARM_UPS = 3


class Captured:
    """Calls a function; with `enabled`, records it at the first call and replays it afterwards.

    The arguments must be the same tensors at every call, overwritten in place, and the result is
    overwritten by the next call. The function may not look at values on the host.

    Graphs may be replayed side by side, by threads with streams of their own: each is recorded in a
    stream that no other graph has. cuBLAS has one workspace per stream and thread, which the graph
    remembers, so graphs recorded in one stream (PyTorch's default) would overwrite each other's
    partial sums. Kernels keep the priority of that stream (below 0 is urgent) wherever they run.
    """

    def __init__(self, function: Callable[..., Any], enabled: bool, priority: int = 0) -> None:
        self.function, self.enabled = function, enabled
        self._stream = torch.cuda.Stream(priority=priority) if enabled else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._arguments: tuple[Any, ...] = ()
        self._result: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's result, in memory that belongs to the graph."""
        if not self.enabled:
            return self.function(*arguments)
        if self._graph is None:
            self._record(arguments)
        assert all(a is b for a, b in zip(arguments, self._arguments, strict=True))
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _record(self, arguments: tuple[Any, ...]) -> None:
        stream = self._stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self.function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._result = self.function(*arguments)
        self._graph, self._arguments = graph, arguments

# SPDX-License-Identifier: Apache-2.0
"""Work of fixed shapes as CUDA graphs: captured once, replayed without the host's launch times."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

NUM_WARM_UP = 2  # calls before the first capture: kernels compile, libraries take workspaces
MOST_WAITING = 6  # calls that were met once and are kept for a capture
MOST_GRAPHS = 24  # of one kind; the one that was not used for longest is forgotten

Function = Callable[[Tensor], Tensor]


class GraphPool:
    """The memory that all graphs of one engine share: no two of them run at the same time.

    What a graph leaves in it is good until another one is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_used = device.type == "cuda"
        self._handle = torch.cuda.graph_pool_handle() if self.is_used else None
        # One for all captures: libraries keep a workspace per stream.
        self._stream = torch.cuda.Stream(device) if self.is_used else None

    def capture(
        self, work: Callable[[], None], num_warm_up: int = NUM_WARM_UP
    ) -> Callable[[], None]:
        """`work` as a graph; off CUDA, `work` itself.

        It may read and write only tensors that outlive it, and what it returns is dropped.
        """
        stream = self._stream
        if stream is None:
            return work
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(num_warm_up):
                work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # A collected graph or tensor of before must not be freed in the middle of the capture.
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(pool=self._handle, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        finally:
            if was_collecting:
                gc.enable()
        return graph.replay


class _Replay:
    """A captured function: its input and its result lie at fixed places."""

    def __init__(
        self, pool: GraphPool, function: Function, example: Tensor, num_warm_up: int
    ) -> None:
        self._source = example.clone()
        self._function = function
        self._result = self._source
        self._run = pool.capture(self._work, num_warm_up)

    def _work(self) -> None:
        self._result = self._function(self._source)

    def __call__(self, inputs: Tensor) -> Tensor:
        self._source.copy_(inputs, non_blocking=True)
        self._run()
        return self._result.clone()


class Graphs:
    """Functions of one tensor by key; the second call with a key captures, later ones replay.

    A key stands for everything but the tensor's values: shapes, and constants of the function.
    """

    def __init__(self, pool: GraphPool, most: int = MOST_GRAPHS) -> None:
        self._pool = pool
        self._most = most
        self._kept: OrderedDict[Hashable, _Replay] = OrderedDict()
        self._met: OrderedDict[Hashable, tuple[Function, Tensor]] = OrderedDict()

    def prepare(self, key: Hashable, function: Function, example: Tensor) -> None:
        """Captures now, for inputs of the example's shape."""
        if self._pool.is_used:
            self._keep(key, _Replay(self._pool, function, example, NUM_WARM_UP))

    def catch_up(self) -> int:
        """Captures what was called once, when there is time for it; returns how many."""
        met = [*self._met.items()]
        self._met.clear()
        for key, (function, example) in met:
            self._keep(key, _Replay(self._pool, function, example, 1))
        return len(met)

    def run(self, key: Hashable, make: Callable[[], Function], inputs: Tensor) -> Tensor:
        """The function's result, in memory of its own; `make` is called for a new key."""
        if not self._pool.is_used:
            return make()(inputs)
        if key in self._met:
            function, _ = self._met.pop(key)
            self._keep(key, _Replay(self._pool, function, inputs, 0))
        replay = self._kept.get(key)
        if replay is not None:
            self._kept.move_to_end(key)
            return replay(inputs)
        function = make()
        self._met[key] = (function, inputs)
        if len(self._met) > MOST_WAITING:
            self._met.popitem(last=False)
        return function(inputs)

    def _keep(self, key: Hashable, replay: _Replay) -> None:
        self._kept[key] = replay
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

# SPDX-License-Identifier: Apache-2.0
"""Which calls are captured and which are replayed, with a pool that counts."""

import torch

from nvila_ros.models.runtime_graphs import Graphs


class FakePool:
    """Counts captures; a replay runs the work again."""

    is_used = True

    def __init__(self):
        self.num_captures = 0

    def capture(self, work, num_warm_up):
        self.num_captures += 1
        work()
        return work


def test_what_comes_again_is_captured_and_results_have_memory_of_their_own():
    pool = FakePool()
    graphs = Graphs(pool, most=2)
    results = [graphs.run("a", lambda: torch.neg, torch.full((2,), float(n))) for n in range(4)]
    assert [float(result[0]) for result in results] == [0, -1, -2, -3]
    assert pool.num_captures == 1
    for key in ("b", "c"):
        graphs.run(key, lambda: torch.neg, torch.ones(3))
    assert graphs.catch_up() == 2 and graphs.catch_up() == 0
    assert pool.num_captures == 3
    assert float(graphs.run("b", lambda: torch.abs, torch.ones(3))[0]) == -1  # the graph's function
    graphs.run("a", lambda: torch.neg, torch.ones(2))  # was pushed out: met anew
    assert pool.num_captures == 3

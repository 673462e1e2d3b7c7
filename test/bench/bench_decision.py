# SPDX-License-Identifier: Apache-2.0
"""How long one decision of the shipped model takes, with the feature cache and without it."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from nvila_ros.cli import NANO_FOLDER
from nvila_ros.models.config import nano_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.policy import NavigationPolicy
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

INSTRUCTION = "Turn left, go through the red door, pass the sofa and stop at the blue chair."
NUM_WARM_UP = 5
NUM_THREADS = 1  # as in the demo, whose other cores draw and drive
UNITS_PER_DECISION = (3, 2, 3, 1)  # the primitives of a usual drive, over and over


class UncachedPolicy(NavigationPolicy):
    """Forgets all features before each decision, as NaVILA's own loop does."""

    def decide(self):
        """Encodes all frames shown."""
        self._black.features = None
        for frame in self._history.select():
            if frame is not None:
                frame.features = None
        return super().decide()


def load(policy_class: type[NavigationPolicy]) -> NavigationPolicy:
    """The shipped weights, or random ones of the same size: the time is the same."""
    if (NANO_FOLDER / "config.json").exists():
        return policy_class.load(NANO_FOLDER)
    tokenizer = build_nano_tokenizer(INSTRUCTION.replace(",", "").replace(".", "").split())
    model = Nvila.from_scratch(nano_config(tokenizer.vocab_size))
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    return policy_class(model, tokenizer)


def measure(policy: NavigationPolicy, num_decisions: int, prepares: bool) -> dict[str, float]:
    """Latencies of a drive on noise images; `prepare` runs between decisions, as on a robot."""
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    policy.reset(INSTRUCTION)
    unit, latencies_s, prepare_s, encoded = 0, [], 0.0, 0
    for number in range(num_decisions + NUM_WARM_UP):
        for _ in range(UNITS_PER_DECISION[number % len(UNITS_PER_DECISION)]):
            policy.observe(images[unit % len(images)], 0.25 * unit, 0.0, 0.0, 0.5 * unit)
            unit += 1
        begin_s = time.perf_counter()
        if prepares:
            policy.prepare()
        prepare_s += time.perf_counter() - begin_s
        decision = policy.decide()
        if number >= NUM_WARM_UP:
            latencies_s.append(decision.latency_s)
            encoded += decision.num_encoded_frames
    p50_s, p95_s = np.percentile(latencies_s, [50, 95])
    return {
        "p50_ms": 1e3 * float(p50_s),
        "p95_ms": 1e3 * float(p95_s),
        "encoded_frames_per_decision": encoded / num_decisions,
        "prepare_ms_per_decision": 1e3 * prepare_s / (num_decisions + NUM_WARM_UP),
    }


def run(num_decisions: int = 60) -> dict[str, Any]:
    """With and without the cache."""
    torch.set_num_threads(NUM_THREADS)
    cached = measure(load(NavigationPolicy), num_decisions, prepares=True)
    uncached = measure(load(UncachedPolicy), num_decisions, prepares=False)
    return {
        "num_threads": NUM_THREADS,
        "num_decisions": num_decisions,
        "with_cache": cached,
        "without_cache": uncached,
        "cache_speedup_p50": uncached["p50_ms"] / cached["p50_ms"],
        "goal_p50_ms": 250.0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=60)
    print(json.dumps(run(parser.parse_args().decisions), indent=2))

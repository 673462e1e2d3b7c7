# SPDX-License-Identifier: Apache-2.0
"""How good an arm's answers are, and which half of the decisions Delta keeps."""

from __future__ import annotations

import numpy as np

from nvila_ros.training.batches import soft_targets
from nvila_ros.training.delta_loss_prune import quota

TEMPERATURE = 0.3  # of the soft targets, as in `recipe.NanoRecipe`
MOST_REGRET = 10.0  # a motion into a wall costs as if without end


def decision_scores(costs: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """(N, 10) costs-to-go, (N, 10) log probabilities -> (N,) float values per decision.

    `agreement` is the soft target's mass on the likeliest answer, `best` 1 where no motion is
    better, `regret` what the likeliest costs more than the best, in units of 25 cm or 15 degrees.
    """
    chosen, rows = scores.argmax(1), np.arange(len(costs))
    regret = costs[rows, chosen] - costs.min(1)
    target = soft_targets(costs, TEMPERATURE)
    return {
        "agreement": target[rows, chosen],
        "best": (regret < 1e-3).astype(float),
        "regret": np.minimum(regret, MOST_REGRET),
        "cross_entropy": -(target * scores).sum(1),
    }


def held_out_scores(costs: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Means of `decision_scores` over decisions."""
    return {key: float(value.mean()) for key, value in decision_scores(costs, scores).items()}


def answer_log_probability(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) expected log probability of an answer drawn from the soft target."""
    return (soft_targets(costs, TEMPERATURE) * scores).sum(1)


def half_by_delta(large: np.ndarray, small: np.ndarray) -> np.ndarray:
    """(N,) bool: the half whose answers the large model likes more than the small one does.

    As `nvila data prune` keeps them: the largest log p_large - log p_small (NVILA, section 2.3).
    """
    return _first_half(np.argsort(small - large, kind="stable"))


def half_at_random(count: int, seed: int) -> np.ndarray:
    """(N,) bool: as many, drawn evenly."""
    return _first_half(np.random.default_rng([seed, 17]).permutation(count))


def _first_half(order: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(order), bool)
    kept[order[: quota(len(order), 0.5)]] = True
    return kept

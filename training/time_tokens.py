# SPDX-License-Identifier: Apache-2.0
"""Times as tokens: the smoothed cross entropy over <t0>..<t99>, and how well spans overlap.

A wrong time token is the less wrong the nearer it is: the target over time tokens j around the true
one i is exp(-(i - j)^2 / (2 std^2)), normalised (NVILA, temporal localisation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.temporal import time_pattern

DEFAULT_STD = 1.0  # in time tokens


def smooth_targets(places: Tensor, num_times: int, std: float) -> Tensor:
    """(N,) int64 true places among the time tokens -> (N, num_times) float32 distributions."""
    if std <= 0:
        raise ValueError(f"std is {std}, expected more than 0; small values mean one-hot targets")
    away = torch.arange(num_times, device=places.device) - places[:, None]
    return F.softmax(-away.float().square() / (2 * std * std), dim=-1)


def time_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    time_ids: Tensor,
    std: float = DEFAULT_STD,
) -> Tensor:
    """Sum over rows of weight times the smoothed cross entropy; a float32 scalar.

    `hidden` (N, D) states whose next token is a time, `head_weight` (V, D), `labels` (N,) ids among
    `time_ids` (K,), which are in the order of time; the softmax is over the whole vocabulary.
    Raises ValueError where a label is no time token.
    """
    matches = labels[:, None] == time_ids
    if not bool(matches.any(-1).all()):
        raise ValueError("a label is no time token; give ordinary labels to the plain loss")
    if not len(labels):
        return (hidden.sum() + head_weight.sum()).float() * 0.0
    scores = F.linear(hidden, head_weight.to(hidden.dtype)).float()
    log_probabilities = F.log_softmax(scores, dim=-1).index_select(-1, time_ids)
    targets = smooth_targets(matches.int().argmax(-1), len(time_ids), std)
    each = -(targets * log_probabilities).sum(-1)
    return each.sum() if weights is None else (each * weights).sum()


def spans_in(text: str, config: NvilaConfig, duration_s: float) -> list[tuple[float, float]]:
    """Times in an answer, two by two, in seconds; a time without a partner is left out."""
    pattern = time_pattern(config)
    last = max(config.num_time_tokens - 1, 1)
    found = [int(match.group(1)) for match in pattern.finditer(text)] if pattern else []
    times_s = [min(number, last) / last * duration_s for number in found]
    pairs = zip(times_s[::2], times_s[1::2], strict=False)
    return [(min(pair), max(pair)) for pair in pairs]


def span_iou(one_s: tuple[float, float], other_s: tuple[float, float]) -> float:
    """Seconds that two spans share over the seconds that either takes; equal points give 1."""
    shared = max(0.0, min(one_s[1], other_s[1]) - max(one_s[0], other_s[0]))
    either = max(one_s[1], other_s[1]) - min(one_s[0], other_s[0])
    if either == 0.0:
        return 1.0
    return shared / either


def mean_iou(
    answer: str, true_spans_s: Sequence[tuple[float, float]], config: NvilaConfig, duration_s: float
) -> float:
    """Mean over the true spans of the IoU with the answer's span of that place, 0 where none."""
    if not true_spans_s:
        raise ValueError("there is no true span to compare with")
    found = spans_in(answer, config, duration_s)
    return sum(
        span_iou(true, found[place]) if place < len(found) else 0.0
        for place, true in enumerate(true_spans_s)
    ) / len(true_spans_s)

# SPDX-License-Identifier: Apache-2.0
"""Times as tokens: near ones are nearly right in the loss, and spans are compared by overlap."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nvila_ros.models.config import nano_config
from nvila_ros.training.time_tokens import mean_iou, smooth_targets, span_iou, spans_in, time_loss

TIMES = torch.tensor([4, 5, 6, 7, 8])


@pytest.fixture
def config():
    return replace(nano_config(500), num_time_tokens=100)


def test_targets_follow_the_gaussian_and_sum_to_one():
    targets = smooth_targets(torch.tensor([0, 2]), 5, std=1.5)
    assert targets.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    ratio = float(targets[1, 4] / targets[1, 2])
    assert ratio == pytest.approx(math.exp(-4 / (2 * 1.5**2)), rel=1e-5)
    assert torch.equal(targets[1], targets[1].flip(0))


def test_a_tiny_std_is_plain_cross_entropy():
    hidden, head = torch.randn(3, 6), torch.randn(10, 6)
    labels, weights = torch.tensor([4, 8, 6]), torch.tensor([1.0, 0.5, 2.0])
    loss = time_loss(hidden, head, labels, weights, TIMES, std=1e-3)
    plain = F.cross_entropy(hidden @ head.T, labels, reduction="none")
    assert float(loss) == pytest.approx(float((plain * weights).sum()), rel=1e-5)


def test_the_gradient_favours_neighbours_over_far_times():
    scores = torch.zeros(1, 10, requires_grad=True)
    # Scores as hidden states of an identity head: the gradient is the softmax less the target.
    time_loss(scores, torch.eye(10), torch.tensor([6]), None, TIMES, 1.0).backward()
    pull = -scores.grad[0]
    assert pull[6] > pull[5] > pull[4] > pull[0] and torch.isclose(pull[5], pull[7])


def test_ordinary_labels_are_refused_and_no_rows_cost_nothing():
    hidden, head = torch.randn(1, 6), torch.randn(10, 6)
    with pytest.raises(ValueError, match="no time token"):
        time_loss(hidden, head, torch.tensor([1]), None, TIMES)
    assert time_loss(hidden[:0], head, torch.tensor([], dtype=torch.long), None, TIMES) == 0.0


@pytest.mark.parametrize(
    ("one", "other", "iou"),
    [((0, 4), (2, 6), 1 / 3), ((0, 1), (2, 3), 0.0), ((1, 3), (1, 3), 1.0), ((2, 2), (2, 2), 1.0)],
)
def test_overlap_of_spans(one, other, iou):
    assert span_iou(one, other) == pytest.approx(iou)


def test_spans_are_read_from_answers(config):
    answer = "From <t10> to <t20>, then <t40> to <t30>. <t7>"
    assert spans_in(answer, config, 99.0) == [(10.0, 20.0), (30.0, 40.0)]
    assert mean_iou(answer, [(10.0, 20.0), (30.0, 50.0)], config, 99.0) == pytest.approx(0.75)
    assert mean_iou("no idea", [(0.0, 1.0)], config, 99.0) == 0.0

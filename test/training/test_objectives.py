# SPDX-License-Identifier: Apache-2.0
"""Soft targets over answers reach the tokens at which the answers part."""

import torch
import torch.nn.functional as F

from nvila_ros.training.objectives import AnswerTable

ANSWERS = [[7, 1, 9], [7, 2, 3, 9], [7, 2, 4, 9]]


def test_token_targets_follow_the_taught_answers_prefix():
    table = AnswerTable(ANSWERS, pad_id=0)
    target = torch.tensor([[0.5, 0.3, 0.2]])
    weights = table.token_targets(torch.tensor([1]), target)[0]
    assert torch.allclose(weights[0], torch.tensor([0.5, 0.3, 0.2]))  # the opening is shared by all
    assert torch.allclose(weights[1], torch.tensor([0.5, 0.3, 0.2]))
    assert torch.allclose(
        weights[2], torch.tensor([0.0, 0.6, 0.4])
    )  # after token 2, answer 0 is out
    assert torch.allclose(weights[3], torch.tensor([0.0, 1.0, 0.0]))


def test_loss_of_a_hard_target_is_plain_cross_entropy():
    table = AnswerTable(ANSWERS, pad_id=0)
    logits = torch.randn(1, 4, 10)
    taught = torch.tensor([2])
    loss = table.loss(logits, taught, F.one_hot(taught, 3).float())
    expected = F.cross_entropy(logits[0], torch.tensor(ANSWERS[2]), reduction="sum")
    assert torch.allclose(loss[0], expected)


def test_padding_after_a_short_answer_costs_nothing():
    table = AnswerTable(ANSWERS, pad_id=0)
    logits = torch.randn(1, 4, 10)
    changed = logits.clone()
    changed[0, 3] = 100.0 * torch.randn(10)
    taught, target = torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.equal(table.loss(logits, taught, target), table.loss(changed, taught, target))

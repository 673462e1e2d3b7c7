# SPDX-License-Identifier: Apache-2.0
"""Batched Muon takes the same steps as PyTorch's, one matrix at a time."""

import pytest
import torch

from nvila_ros.training.muon import BatchedMuon


def test_steps_equal_the_unbatched_ones():
    torch.manual_seed(0)
    shapes = ((6, 9), (9, 6), (6, 9), (7, 7))
    values = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(v.clone()) for v in values] for _ in range(2))
    batched = BatchedMuon(ours, lr=0.02, momentum=0.95, weight_decay=0.05)
    single = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        batched.step()
        single.step()
    for one, other, start in zip(ours, theirs, values, strict=True):
        assert torch.allclose(one, other, atol=1e-5) and not torch.equal(one, start)


def test_only_matrices_are_taken():
    with pytest.raises(ValueError, match="AdamW"):
        BatchedMuon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)

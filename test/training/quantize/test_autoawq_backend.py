# SPDX-License-Identifier: Apache-2.0
"""The backend AutoAWQ without AutoAWQ: what is put right around its search."""

import sys
import types

import pytest
import torch
from torch import nn

from nvila_ros.training.quantize import autoawq_backend


class Searching:
    """Tries two scales as AutoAWQ 0.2.9 does: in place, over weights remembered with `.cpu()`."""

    def _compute_best_scale(self, x, w_mean, x_mean, module, linears, expected, kwargs=None):
        remembered = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        seen = []
        for scale in (2.0, 3.0):
            for linear in linears:
                linear.weight.mul_(scale)
                seen.append(linear.weight.clone())
                linear.weight.data = linear.weight.data.round() / scale
            module.load_state_dict(remembered)
        return seen


@pytest.fixture
def autoawq(monkeypatch):
    module = types.ModuleType("awq.quantize.quantizer")
    module.AwqQuantizer = Searching
    for name in ("awq", "awq.quantize"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@torch.no_grad()
def search(quantizer, module):
    return quantizer._compute_best_scale(None, None, None, module, [module[0]], None)


def test_every_scale_is_tried_on_the_weights_as_they_are(autoawq):
    module = nn.Sequential(nn.Linear(4, 3))
    weight = module[0].weight.detach().clone()
    seen = search(autoawq_backend.cpu_quantizer()(), module)
    assert torch.equal(seen[0], 2 * weight) and torch.equal(seen[1], 3 * weight)
    assert torch.equal(module[0].weight, weight)
    assert set(module.state_dict()) == {"0.weight", "0.bias"}


def test_without_that_a_search_on_a_cpu_changes_the_layer(autoawq):
    module = nn.Sequential(nn.Linear(4, 3))
    weight = module[0].weight.detach().clone()
    search(Searching(), module)
    assert not torch.equal(module[0].weight, weight)

# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from nvila_ros.errors import ConfigError
from nvila_ros.training.fused_loss import (
    IGNORED,
    LossConfig,
    chosen_implementation,
    linear_cross_entropy,
)

ROWS, WIDTH, WORDS = 37, 24, 301


def problem(dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, WORDS, (ROWS,), generator=generator)
    labels[torch.rand(ROWS, generator=generator) < 0.4] = IGNORED
    weights = torch.rand(ROWS, generator=generator, dtype=torch.float64) + 0.5
    return (
        hidden.to(device, dtype).requires_grad_(),
        weight.to(device, dtype).requires_grad_(),
        labels.to(device),
        weights.to(device, torch.float32),
    )


def reference(hidden, weight, labels, weights=None):
    """Float64 through all the logits: (loss, gradient of hidden, gradient of weight)."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    losses = F.cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORED, reduction="none")
    loss = (losses if weights is None else losses * weights.double()).sum()
    return (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))


def relative(value, expected):
    return float((value.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1024])
def test_chunked_loss_and_gradients_are_those_of_float64(chunk_rows, is_weighted):
    hidden, weight, labels, weights = problem()
    weights = weights if is_weighted else None
    config = LossConfig(implementation="chunked", chunk_rows=chunk_rows)
    loss = linear_cross_entropy(hidden, weight, labels, weights, config)
    (loss * 0.25).backward()
    expected = reference(hidden, weight, labels, weights)
    assert relative(loss, expected[0]) < 1e-12
    assert relative(hidden.grad, 0.25 * expected[1]) < 1e-12
    assert relative(weight.grad, 0.25 * expected[2]) < 1e-12


def test_bfloat16_stays_within_its_rounding():
    hidden, weight, labels, _ = problem(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, labels, config=LossConfig(chunk_rows=8))
    loss.backward()
    expected = reference(hidden, weight, labels)
    assert loss.dtype == torch.float32
    assert relative(loss, expected[0]) < 2e-3
    assert relative(hidden.grad, expected[1]) < 1e-2
    assert relative(weight.grad, expected[2]) < 1e-2


@pytest.mark.parametrize("chunk_rows", [8, 1024])
def test_autocast_over_float32_weights_stays_within_bfloat16s_rounding(chunk_rows):
    hidden, weight, labels, weights = problem(torch.float32)
    config = LossConfig(chunk_rows=chunk_rows)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, weights, config)
    loss.backward()
    expected = reference(hidden, weight, labels, weights)
    assert weight.grad.dtype == torch.float32
    assert relative(loss, expected[0]) < 2e-3
    assert relative(hidden.grad, expected[1]) < 1e-2
    assert relative(weight.grad, expected[2]) < 1e-2


def test_a_batch_without_labels_costs_nothing_and_still_reaches_every_parameter():
    hidden, weight, labels, _ = problem()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0 and hidden.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, labels, _ = problem()
    weight = weight.detach()
    linear_cross_entropy(hidden, weight, labels).backward()
    assert relative(hidden.grad, reference(hidden, weight, labels)[1]) < 1e-12


def test_known_rows_are_taken_as_they_are():
    hidden, weight, labels, _ = problem()
    rows = (labels != IGNORED).nonzero().squeeze(-1)
    loss = linear_cross_entropy(hidden, weight, labels, rows=rows)
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, labels))


def test_scores_of_a_chunk_are_the_most_that_is_made(monkeypatch):
    hidden, weight, labels, _ = problem()
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *inputs: seen.append(len(inputs[0])) or linear(*inputs))
    linear_cross_entropy(hidden, weight, labels, config=LossConfig(chunk_rows=4)).backward()
    assert max(seen) == 4 and sum(seen) == int((labels != IGNORED).sum())


@pytest.mark.parametrize("num_rows, name", [(12, "chunked"), (1024, "chunked"), (1025, "liger")])
def test_few_rows_are_not_cut_into_ligers_small_chunks(monkeypatch, num_rows, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    cuda = torch.device("cuda")
    assert chosen_implementation(LossConfig(), cuda, num_rows) == name
    assert chosen_implementation(LossConfig(implementation="liger"), cuda, num_rows) == "liger"
    assert chosen_implementation(LossConfig(), torch.device("cpu"), num_rows) == "chunked"


def test_gradients_are_scaled_once_and_without_a_copy():
    hidden, weight, labels, _ = problem()
    loss = linear_cross_entropy(hidden, weight, labels)
    (loss * 0.5).backward(retain_graph=True)
    assert relative(weight.grad, 0.5 * reference(hidden, weight, labels)[2]) < 1e-12
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_liger_without_a_gpu_says_what_to_do():
    hidden, weight, labels, _ = problem()
    with pytest.raises(ConfigError, match="train-gpu"):
        linear_cross_entropy(hidden, weight, labels, config=LossConfig(implementation="liger"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["liger", "chunked"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_losses_on_a_gpu_are_those_of_float64(implementation, is_weighted):
    if implementation == "liger":
        pytest.importorskip("liger_kernel")
    hidden, weight, labels, weights = problem(torch.bfloat16, "cuda")
    weights = weights if is_weighted else None
    config = LossConfig(implementation=implementation)
    loss = linear_cross_entropy(hidden, weight, labels, weights, config)
    loss.backward()
    expected = reference(hidden, weight, labels, weights)
    assert relative(loss, expected[0]) < 2e-3
    assert relative(hidden.grad, expected[1]) < 1e-2
    assert relative(weight.grad, expected[2]) < 1e-2

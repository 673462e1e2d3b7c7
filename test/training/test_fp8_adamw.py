# SPDX-License-Identifier: Apache-2.0
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvila_ros.errors import ConfigError
from nvila_ros.training import fp8_adamw
from nvila_ros.training.fp8_adamw import BLOCK, FLOAT8, Float8AdamW, quantize, round_stochastically


def gradients(shape, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-6, 0, shape[0]).unsqueeze(1)  # rows of very different size
    return [torch.randn(shape, generator=generator) * scale for _ in range(steps)]


def train(optimizer, weight, slopes):
    for slope in slopes:
        weight.grad = slope.to(weight.dtype)
        optimizer.step()


def relative(value, expected):
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


def test_steps_stay_near_those_of_adamw():
    start = torch.randn(64, 130, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    slopes = gradients(start.shape, 20)
    train(Float8AdamW([ours], **options), ours, slopes)
    train(torch.optim.AdamW([theirs], **options), theirs, slopes)
    assert relative(ours - start, theirs - start) < 0.05


def test_small_tensors_follow_adamw_exactly():
    start = torch.randn(100)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    slopes = [slope[0, :100] for slope in gradients((1, 100), 10)]
    train(Float8AdamW([ours], lr=1e-2), ours, slopes)
    train(torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.0), theirs, slopes)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def one_by_one(weight, slopes, number, rate, decay):
    """Small tensors without their like: what each of them is to become."""
    first, root = (torch.zeros(weight.shape) for _ in range(2))
    group = {"lr": rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": decay}
    for step, slope in enumerate(slopes, start=1):
        moments = (slope.to(weight.dtype).float(), first, root)
        values, first, root = fp8_adamw._step(
            weight.float(), *moments, fp8_adamw.step_factors(group, step)
        )
        if weight.dtype == torch.bfloat16:
            index = torch.arange(weight.numel()).view(weight.shape)
            values = round_stochastically(values, index, fp8_adamw.random_seed(step, number))
        weight = values.to(weight.dtype)
    return weight


def test_small_tensors_together_step_as_each_alone():
    kinds = [
        ((5,), torch.bfloat16),
        ((3, 7), torch.bfloat16),
        ((), torch.bfloat16),
        ((11,), torch.float32),
        ((40,), torch.bfloat16),
    ]
    generator = torch.Generator().manual_seed(5)
    starts = [torch.randn(shape, generator=generator).to(dtype) for shape, dtype in kinds]
    slopes = [[torch.randn(s.shape, generator=generator) for _ in range(3)] for s in starts]
    parameters = [torch.nn.Parameter(start.clone()) for start in starts]
    groups = [
        {"params": parameters[:4], "lr": 1e-2, "weight_decay": 0.1},
        {"params": parameters[4:], "lr": 3e-3},
    ]
    optimizer = Float8AdamW(groups)
    for number in range(3):
        for parameter, own in zip(parameters, slopes, strict=True):
            parameter.grad = own[number].to(parameter.dtype)
        optimizer.step()
    for number, (start, parameter, own) in enumerate(
        zip(starts, parameters, slopes, strict=True), start=1
    ):
        rate, decay = (1e-2, 0.1) if number < 5 else (3e-3, 0.0)
        assert torch.equal(parameter.detach(), one_by_one(start, own, number, rate, decay))


def test_a_small_tensor_without_a_gradient_falls_a_step_behind():
    still, moved = (torch.nn.Parameter(torch.ones(6)) for _ in range(2))
    optimizer = Float8AdamW([still, moved], lr=0.1)
    train(optimizer, moved, [torch.ones(6)])
    assert torch.equal(still.detach(), torch.ones(6))
    train(optimizer, still, [torch.ones(6)])
    assert optimizer.state[still]["step"] == 1
    assert optimizer.state[moved]["step"] == 2


def test_many_small_tensors_take_few_operations():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            is_view = function._schema.name in ("aten::view", "aten::detach", "aten::reshape")
            self.count += not is_view
            return function(*args, **(kwargs or {}))

    parameters = [torch.nn.Parameter(torch.zeros(9, dtype=torch.bfloat16)) for _ in range(200)]
    optimizer = Float8AdamW(parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with Counter() as counter:
            optimizer.step()
    assert counter.count < 100


def test_a_neighbour_of_a_huge_gradient_does_not_explode():
    weight = torch.nn.Parameter(torch.zeros(32, BLOCK))
    slope = torch.full((32, BLOCK), 1e-7)
    slope[:, 0] = 1e3  # the block's scale is this one's
    optimizer = Float8AdamW([weight], lr=1e-3)
    train(optimizer, weight, [slope] * 5)
    assert weight.detach().abs().max() < 6 * 1e-3


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
def test_small_gradients_beside_large_ones_keep_their_own_pace(ratio):
    ours, theirs = (torch.nn.Parameter(torch.zeros(16, BLOCK)) for _ in range(2))
    slopes = []
    for slope in gradients((1, 16 * BLOCK), 60):
        slope = slope.view(16, BLOCK) * 1e6 * ratio
        slope[:, 0] /= ratio  # one of each block
        slopes.append(slope)
    train(Float8AdamW([ours], lr=1e-3), ours, slopes)
    train(torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.0), theirs, slopes)
    assert relative(ours[:, 1:], theirs[:, 1:]) < 0.15


def test_moments_take_two_bytes_and_a_scale():
    weight = torch.nn.Parameter(torch.zeros(64, 128, dtype=torch.bfloat16))
    optimizer = Float8AdamW([weight])
    train(optimizer, weight, [torch.ones(64, 128)])
    num_bytes = sum(
        t.nbytes for t in optimizer.state[weight].values() if isinstance(t, torch.Tensor)
    )
    assert num_bytes == weight.numel() * (2 + 8 / BLOCK)


def test_bfloat16_weights_move_by_steps_below_their_spacing():
    weight = torch.nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16))  # spacing 2^-8 below
    optimizer = Float8AdamW([weight], lr=1e-5)
    train(optimizer, weight, [torch.ones(256, 256)] * 50)
    assert abs(float(weight.detach().float().mean()) - (1 - 50e-5)) < 5e-5


def test_rounding_is_right_on_average_and_exact_where_it_can_be():
    values = torch.full((100_000,), 1.0 + 0.25 * 2**-7)  # a quarter of the way
    index = torch.arange(len(values))
    rounded = round_stochastically(values, index, seed=7).float()
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert abs(float(rounded.mean()) - float(values[0])) < 1e-4
    exact = torch.tensor([-3.5, 0.0, 1.5])
    assert torch.equal(round_stochastically(exact, torch.arange(3), 1).float(), exact)


def test_codes_keep_what_is_above_zero():
    values = torch.zeros(1, BLOCK)
    values[0, :3] = torch.tensor([448.0, 1e-9, 3.0])
    codes, scale = quantize(values, keeps_tiny=True)
    assert codes.dtype == FLOAT8 and scale.tolist() == [1.0]
    assert codes.float()[0, :4].tolist() == [448.0, 2.0**-9, 3.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_bit_identical(dtype):
    start = torch.randn(70, 90).to(dtype)
    slopes = gradients(start.shape, 6)
    whole = torch.nn.Parameter(start.clone())
    train(Float8AdamW([whole], lr=1e-2), whole, slopes)
    half = torch.nn.Parameter(start.clone())
    first = Float8AdamW([half], lr=1e-2)
    train(first, half, slopes[:3])
    saved = copy.deepcopy(first.state_dict())
    second = Float8AdamW([half], lr=1e-2)
    second.load_state_dict(saved)
    assert second.state[half]["first"].dtype == FLOAT8
    train(second, half, slopes[3:])
    assert torch.equal(whole, half)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_run_resumed_from_a_distributed_checkpoint_is_bit_identical(tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def make():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(70, 90), torch.nn.Linear(90, 5)).bfloat16()
        return model, Float8AdamW(model.parameters(), lr=1e-2)

    def run(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(8, 70).bfloat16()).square().mean().backward()
            optimizer.step()

    whole = make()
    run(*whole, range(6))
    first = make()
    run(*first, range(3))
    weights, states = get_state_dict(*first)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=tmp_path, no_dist=True)
    second = make()
    weights, states = get_state_dict(*second)
    state = {"model": weights, "optimizer": states}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(*second, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    run(*second, range(3, 6))
    for ours, theirs in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_two_ranks_resume_from_their_own_moments(tmp_path):
    script = Path(__file__).with_name("sharded_adamw.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors[-3000:]


def test_stretches_of_blocks_change_nothing(monkeypatch):
    start = torch.randn(50, 111)
    results = []
    for chunk in (1 << 16, 3):
        monkeypatch.setattr(fp8_adamw, "CHUNK_BLOCKS", chunk)
        weight = torch.nn.Parameter(start.clone().bfloat16())
        train(Float8AdamW([weight], lr=1e-2), weight, gradients(start.shape, 3))
        results.append(weight.detach())
    assert torch.equal(*results)


def test_half_precision_weights_are_refused():
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    weight.grad = torch.ones(4, dtype=torch.float16)
    with pytest.raises(ConfigError, match="bfloat16"):
        Float8AdamW([weight]).step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_does_what_its_twin_does(dtype, monkeypatch):
    start = torch.randn(300, 257).to(dtype)
    slopes = gradients(start.shape, 4)
    kernel = torch.nn.Parameter(start.clone().cuda())
    train(Float8AdamW([kernel], lr=1e-2), kernel, [slope.cuda() for slope in slopes])
    twin = torch.nn.Parameter(start.clone().cuda())
    monkeypatch.setattr(fp8_adamw, "_kernel_for", lambda weight: None)
    train(Float8AdamW([twin], lr=1e-2), twin, [slope.cuda() for slope in slopes])
    assert relative(kernel - start.cuda(), twin - start.cuda()) < 0.02

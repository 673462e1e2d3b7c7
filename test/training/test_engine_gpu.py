# SPDX-License-Identifier: Apache-2.0
"""The training engine on CUDA: one GPU like the CPU, two like one (as soon as two are there)."""

from __future__ import annotations

import importlib.util

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'deepspeed'"
)
FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
PLAIN = ["engine.compile_layers=false"]
MIXED = ["precision.compute=bfloat16", "engine.checkpoint_layers=true"]


def losses(run) -> list[float]:
    assert set(run.codes) == {0}, run.text
    return [line["loss"] for line in run.log]


def test_one_gpu_learns_what_the_cpu_learns(launch) -> None:
    expected = losses(launch("cpu"))
    found = losses(launch("gpu", device="cuda", overrides=PLAIN))
    assert found == pytest.approx(expected, rel=2e-3)  # TF32 and other orders of summation


@pytest.mark.parametrize("environment", [{}, FSDP], ids=["autocast", "fsdp"])
def test_bfloat16_compiled_and_checkpointed_follows_float32(launch, environment) -> None:
    expected = losses(launch("wide", device="cuda", overrides=PLAIN))
    found = losses(launch("mixed", 1, environment, device="cuda", overrides=MIXED))
    assert found == pytest.approx(expected, rel=2e-2)


def test_a_resumed_gpu_run_is_the_same(launch) -> None:
    overrides = [*MIXED, *PLAIN]
    whole = losses(launch("whole", device="cuda", overrides=overrides))
    launch("cut", device="cuda", overrides=overrides, die_at=14)
    resumed = losses(launch("cut", device="cuda", overrides=overrides, resume=True))
    assert resumed == pytest.approx(whole, rel=1e-3)


@needs_two
@pytest.mark.parametrize(
    "environment",
    [{}, FSDP, pytest.param(ZERO, marks=needs_deepspeed)],
    ids=["ddp", "fsdp", "zero3"],
)
def test_two_gpus_equal_one(launch, environment) -> None:
    one = losses(launch("one", device="cuda", overrides=PLAIN))
    two = losses(launch("two", 2, environment, device="cuda", overrides=PLAIN))
    assert two == pytest.approx(one, rel=1e-4)

# SPDX-License-Identifier: Apache-2.0
"""What the training figures rest on, checked on the GPU before anything is timed."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from train_case import Case, Trainer, decisions, network

from nvila_ros.training import fp8_adamw
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.fp8 import PrecisionConfig
from nvila_ros.training.fused_loss import IGNORED, LossConfig, linear_cross_entropy

DEVICE = torch.device(os.environ.get("BENCH_DEVICE", "cuda"))  # another one for rehearsals
WORDS, WIDTH = 151_651, 3584  # of the 8B head
IS_EAGER = "--eager" in sys.argv  # nothing is compiled: flex attention is then left out


def relative(value: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what is expected; NaN stays NaN."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


def losses() -> dict[str, Any]:
    """Both implementations at the 8B head's shape against float64."""
    hidden = torch.randn(96, WIDTH, device=DEVICE)
    weight = torch.randn(WORDS, WIDTH, device=DEVICE) * 0.02
    labels = torch.randint(0, WORDS, (96,), device=DEVICE)
    labels[::5] = IGNORED
    exact = [t.bfloat16().double().requires_grad_() for t in (hidden, weight)]
    expected = torch.nn.functional.cross_entropy(
        exact[0] @ exact[1].t(), labels, ignore_index=IGNORED, reduction="sum"
    )
    gradients = torch.autograd.grad(expected, exact)
    found = {}
    for name in ("liger", "chunked"):
        inputs = [t.bfloat16().requires_grad_() for t in (hidden, weight)]
        config = LossConfig(implementation=name)  # type: ignore[arg-type]
        loss = linear_cross_entropy(*inputs, labels, config=config)
        loss.backward()
        errors = [relative(i.grad, g) for i, g in zip(inputs, gradients, strict=True)]
        found[name] = [relative(loss, expected), *errors]
        assert found[name][0] < 2e-3 and max(errors) < 1e-2, found
    return found


def optimizer() -> dict[str, Any]:
    """The kernel against its twin, and both against AdamW in float32.

    Weights in bfloat16 are rounded at random: after five steps of 0.01 that alone is 0.29 of how
    far they moved (numbers around one lie 2^-8 to 2^-7 apart). So what is asked there is that the
    twin is as far from AdamW as AdamW rounded by other random numbers, and moves as far on average.
    """
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        start = torch.randn(1000, 1027, device=DEVICE).to(dtype)
        moved = {name: _moved(name, start) for name in ("kernel", "twin", "adamw", "rounded")}
        goal = moved["adamw"]
        noise = relative(moved["rounded"], goal) if dtype == torch.bfloat16 else 0.0
        pace = float((moved["twin"] * goal).sum() / goal.square().sum())
        errors = [relative(moved["kernel"], moved["twin"]), relative(moved["twin"], goal)]
        found[str(dtype)] = [*errors, noise, pace]
        assert errors[0] < 0.02 and errors[1] < 0.02 + 1.05 * noise, found
        assert abs(pace - 1.0) < 0.01, found
    wide = torch.randn(18_944, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.nn.Parameter(wide)
    weight.grad = torch.randn_like(weight)
    optimizer = fp8_adamw.Float8AdamW([weight])
    found["us_per_step_68m"] = 1e3 * milliseconds(optimizer.step)
    found["gb_per_s"] = weight.numel() * 10 / found["us_per_step_68m"] / 1e3
    return found


def _moved(name: str, start: Tensor) -> Tensor:
    """How far five steps of one way move a weight; every way has the same gradients."""
    is_own = name in ("kernel", "twin")
    weight = torch.nn.Parameter(start.clone() if is_own else start.float().clone())
    kind = fp8_adamw.Float8AdamW if is_own else torch.optim.AdamW
    optimizer = kind([weight], lr=1e-2, weight_decay=0.1)
    original = fp8_adamw._kernel_for
    if name == "twin":
        fp8_adamw._kernel_for = lambda weight: None  # type: ignore[assignment]
    for step in range(5):
        torch.manual_seed(step)
        gradient = torch.randn_like(start) * 10.0 ** (step - 4)
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
        if name == "rounded":
            bits = weight.data.view(torch.int32)
            noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=DEVICE)
            weight.data.copy_(((bits + noise) & -65536).view(torch.float32))
    fp8_adamw._kernel_for = original  # type: ignore[assignment]
    return weight.detach().float() - start.float()


def attention() -> dict[str, Any]:
    """Flash attention over samples, keys shared by seven heads, against one call per sample."""
    segments = (700, 1090, 306)
    total = sum(segments)
    shapes = ((1, 28, total, 128), (1, 4, total, 128), (1, 4, total, 128))
    inputs = [torch.randn(s, device=DEVICE, dtype=torch.bfloat16) for s in shapes]
    slope = torch.randn(shapes[0], device=DEVICE, dtype=torch.bfloat16)
    results = {}
    ways = [("split", torch.float32), ("varlen", torch.bfloat16), ("flex", torch.bfloat16)]
    for name, dtype in ways[:2] if IS_EAGER else ways:
        copies = [t.to(dtype).requires_grad_() for t in inputs]
        attend = SampleAttention(segments, DEVICE, name)  # type: ignore[arg-type]
        mixed = attend(*copies)
        results[name] = [mixed, *torch.autograd.grad(mixed, copies, slope.to(dtype))]
    found: dict[str, Any] = {
        name: [relative(a, b) for a, b in zip(results[name], results["split"], strict=True)]
        for name in results
        if name != "split"
    }
    found["grouped"] = grouped(inputs, slope, segments, results["split"])
    assert max(found["varlen"]) < 1e-2, found
    return found


def grouped(inputs: list, slope: Tensor, segments: tuple, expected: list) -> Any:
    """Whether this torch's varlen attention takes fewer key heads as they are."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *segments], device=DEVICE).cumsum(0).int()
    copies = [t[0].transpose(0, 1).contiguous().requires_grad_() for t in inputs]
    longest = max(segments)
    try:
        mixed = varlen_attn(*copies, ends, ends, longest, longest, window_size=(-1, 0))
        gradients = torch.autograd.grad(mixed, copies, slope[0].transpose(0, 1))
        pairs = zip((mixed, *gradients), expected, strict=True)
        return [relative(a.transpose(0, 1), b[0]) for a, b in pairs]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


def products() -> dict[str, Any]:
    """Float8 linears in compiled layers: loss and gradients beside bfloat16's and float32's."""
    found: dict[str, Any] = {}
    gradients: dict[str, Tensor] = {}
    for compute in ("float32", "bfloat16", "float8_tensor", "float8_row"):
        torch.manual_seed(0)
        precision = PrecisionConfig(compute=compute)  # type: ignore[arg-type]
        case = Case(compute, precision=precision, is_compiled=not IS_EAGER)
        model = network(case, is_small=True, device=DEVICE)
        if compute == "float32":
            model.llm.float()
        trainer = Trainer(case, model, checkpoints=False)
        batch = decisions(model.config, 2, has_frames=False).to(DEVICE)
        torch.compiler.set_stance("force_eager" if compute == "float32" else "default")
        loss = trainer.loss(batch)
        loss.backward()
        gradients[compute] = model.llm.model.layers[0].mlp.down_proj.weight.grad.float().cpu()
        found[compute] = [float(loss.detach()), relative(gradients[compute], gradients["float32"])]
        del model, trainer
        torch.cuda.empty_cache()
    assert found["bfloat16"][1] < 0.05 and found["float8_row"][1] < 0.2, found
    return found


def milliseconds(work: Callable[[], Any]) -> float:
    """Median of ten, between events on the device."""
    from timing import events_ms

    return events_ms(work)


def main() -> None:
    """Each check stands alone; each prints all results so far."""
    result: dict[str, Any] = {"row": "checks", "is_compiled": not IS_EAGER}
    begin_s = time.perf_counter()
    for check in (optimizer, losses, attention, products):
        try:
            result[check.__name__] = check()
        except Exception as error:
            traceback.print_exc()
            result[check.__name__] = f"{type(error).__name__}: {error}"[:600]
        torch.cuda.empty_cache()
        spent = f"{time.perf_counter() - begin_s:6.1f} s"
        print(f"{spent}  {check.__name__}: {result[check.__name__]}", file=sys.stderr, flush=True)
        print("RESULT " + json.dumps(result), flush=True)  # the last one counts
    print("READY", flush=True)


if __name__ == "__main__":
    main()

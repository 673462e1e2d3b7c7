# SPDX-License-Identifier: Apache-2.0
"""One training row in a process of its own: compiles, says READY, waits for GO, measures, prints.

Compiling needs processors, measuring needs the whole GPU: `bench_train.py` lets rows compile side
by side and measures them one after another.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import traceback
from typing import Any

import torch
from train_case import Case, Trainer, cases, decisions, network
from train_feed import waiting

from nvila_ros.training.flops import peak_flops

NUM_WARM_UP, NUM_STEPS = 1, 3
RESERVE_BYTES = 3 << 30  # of the card: fragments, cuBLAS's and other processes' own
MOST_SAMPLES = int(os.environ.get("BENCH_MOST_SAMPLES", "48"))  # steps of seconds say enough
PROBES = (2, 4)  # samples of the steps that the bytes model is fitted to


def main() -> None:
    """`train_row.py NAME`; the result is the last line on stdout."""
    case = cases()[sys.argv[1]]()
    device = torch.device(os.environ.get("BENCH_DEVICE", "cuda"))  # another one for rehearsals
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    result: dict[str, Any] = {"row": case.name}
    begin_s = time.perf_counter()
    try:
        compile_ahead(case, device)
        result["compile_s"] = round(time.perf_counter() - begin_s, 1)
        print("READY", flush=True)
        sys.stdin.readline()
        result |= measure(case, device)
    except Exception as error:
        result |= {"error": f"{type(error).__name__}: {error}"[:500]}
        traceback.print_exc()
        print("READY", flush=True)  # if it failed before that
    print("RESULT " + json.dumps(result), flush=True)


def compile_ahead(case: Case, device: torch.device) -> None:
    """Two layers, two lengths, both ways of keeping activations: everything that is compiled."""
    model = network(case, is_small=True, device=device)
    for checkpoints in case.checkpoints:
        trainer = Trainer(case, model, checkpoints=checkpoints)
        for count in (2, 3):
            trainer.step(batch_of(case, trainer, count))
        trainer.close()
    del model, trainer
    forget()


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """The whole network, each way of keeping activations at the largest batch that fits."""
    begin_s = time.perf_counter()
    model = network(case, is_small=False, device=device)
    parameters = [p for p in model.parameters() if not p.is_meta]
    learning = [p for p in parameters if p.requires_grad]
    result: dict[str, Any] = {
        "network": case.network,
        "has_tower": case.has_tower,
        "compute": case.precision.compute,
        "optimizer_states": case.precision.optimizer_states,
        "budget": case.budget,
        "num_layers": model.config.language.num_hidden_layers,
        "num_learning": sum(p.numel() for p in learning),
        "weights_gb": torch.cuda.memory_allocated() / 1e9,
        "runs": [],
    }
    for checkpoints in case.checkpoints:
        forget()
        trainer = Trainer(case, model, checkpoints=checkpoints)
        try:
            run = {"checkpoints": checkpoints} | largest(case, trainer)
            if case.has_tower and "samples" in run and not case.adapt.is_partial:
                run["loader"] = waiting(model.config, trainer.step, run["samples"])
        except Exception as error:
            traceback.print_exc()
            run = {"checkpoints": checkpoints, "error": f"{type(error).__name__}: {error}"[:300]}
        result["runs"].append(run)
        trainer.close()
        del trainer
    result["gpu"] = torch.cuda.get_device_name()
    result["wall_s"] = round(time.perf_counter() - begin_s, 1)
    return result


def largest(case: Case, trainer: Trainer) -> dict[str, Any]:
    """Fits bytes = a + b * tokens to two small steps, then tries the largest batch they promise."""
    if case.max_samples is not None:
        return timed(case, trainer, case.max_samples)
    points = []
    for count in PROBES:
        trainer.step(batch_of(case, trainer, count))  # moments exist after the first
        forget()
        batch = batch_of(case, trainer, count)
        trainer.step(batch)
        torch.cuda.synchronize()
        points.append((len(batch), torch.cuda.max_memory_allocated()))
    (few, low), (many, high) = points
    per_token = max(1.0, (high - low) / (many - few))
    fixed = low - per_token * few
    free, total = torch.cuda.mem_get_info()
    usable = free + torch.cuda.memory_reserved() - RESERVE_BYTES
    tokens_per_sample = many / PROBES[1]
    count = max(1, int((usable - fixed) / per_token / tokens_per_sample))
    model_of_bytes = {
        "fixed_gb": round(fixed / 1e9, 2),
        "kb_per_token": round(per_token / 1e3, 1),
        "predicted_samples": count,
        "usable_gb": round(usable / 1e9, 1),
        "total_gb": round(total / 1e9, 1),
    }
    count = min(count, MOST_SAMPLES)
    tries = []
    for share in (1.0, 0.93, 0.85, 0.7):
        tried = max(1, int(count * share))
        try:
            return {"bytes_model": model_of_bytes, "failed": tries, **timed(case, trainer, tried)}
        except torch.cuda.OutOfMemoryError:
            tries.append(tried)
            trainer.optimizer.zero_grad(set_to_none=True)
        forget()
    return {"bytes_model": model_of_bytes, "failed": tries, "error": "no batch fitted"}


def timed(case: Case, trainer: Trainer, count: int) -> dict[str, Any]:
    """Median wall time of whole steps, host to device copies included, and what they needed."""
    batches = [batch_of(case, trainer, count, seed) for seed in range(2)]
    forget()
    times: list[float] = []
    losses: list[float] = []
    for number in range(NUM_WARM_UP + NUM_STEPS):
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        loss = trainer.step(batches[number % 2])
        torch.cuda.synchronize()
        if number >= NUM_WARM_UP:
            times.append(time.perf_counter() - begin_s)
        losses.append(float(loss))
    step_s, batch = statistics.median(times), batches[0]
    tokens = sum(batch.lengths)
    result = {
        "samples": count,
        "tokens": tokens,
        "step_ms": round(1e3 * step_s, 1),
        "all_steps_ms": [round(1e3 * each, 1) for each in times],
        "samples_per_s": round(count / step_s, 3),
        "steps_per_s": round(1 / step_s, 3),
        "tokens_per_s": round(tokens / step_s),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "losses": [round(loss, 3) for loss in losses],
    }
    flops, peak = trainer.flops(batch), peak_flops(torch.cuda.get_device_name())
    result["tflop_per_step"] = round(flops / 1e12, 1)
    result["tflop_per_s"] = round(flops / step_s / 1e12, 1)
    result["mfu"] = round(flops / step_s / peak, 4) if peak else None
    return result


def batch_of(case: Case, trainer: Trainer, count: int, seed: int = 0) -> Any:
    """Packed random decisions in page-locked memory."""
    config = trainer.model.config
    return decisions(config, count, has_frames=case.has_tower, seed=seed).pin_memory()


def forget() -> None:
    """Gives unused memory back and starts counting the peak anew."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()

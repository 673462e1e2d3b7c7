# SPDX-License-Identifier: Apache-2.0
"""One training row in a process of its own: compiles, says READY, waits for GO, measures, prints.

Compiling needs processors, measuring needs the whole GPU: `bench_train.py` lets rows compile side
by side and measures them one after another. What was compiled can be kept in a folder (`--cache`)
and taken to another machine of the same kind; `--warm` fills it and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import gzip
import json
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_case import Case, Trainer, cases, decisions, network
from train_feed import waiting
from train_probe import PROBES, lower, probed

from nvila_ros.training.flops import peak_flops

BEGIN_S = time.perf_counter()
NUM_WARM_UP = 1
NUM_STEPS = int(os.environ.get("BENCH_STEPS", "3"))
NUM_SHORT_STEPS = int(os.environ.get("BENCH_SHORT_STEPS", "10"))
RESERVE_BYTES = 3 << 30  # of the card: fragments, cuBLAS's and other processes' own
MOST_SAMPLES = int(os.environ.get("BENCH_MOST_SAMPLES", "48"))  # steps of seconds say enough
AHEAD = (2, 3, 8)  # compiled for: few, few again (nothing new), more than two graphs are made for


def main() -> None:
    """`train_row.py NAME`; the result is the last line on stdout."""
    options = asked()
    case = cases()[options.name]()
    case = dataclasses.replace(case, is_compiled=not options.eager)
    if options.checkpoints != "both":
        case = dataclasses.replace(case, checkpoints=(options.checkpoints == "yes",))
    device = torch.device(os.environ.get("BENCH_DEVICE", "cuda"))  # another one for rehearsals
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    result: dict[str, Any] = {"row": case.name, "is_compiled": case.is_compiled}
    try:
        with chosen_attention(case):
            one_row(case, device, options, result)
    except Exception as error:
        result |= {"error": f"{type(error).__name__}: {error}"[:500]}
        traceback.print_exc()
        print("READY", flush=True)  # if it failed before that
    print("RESULT " + json.dumps(result), flush=True)


def one_row(
    case: Case, device: torch.device, options: argparse.Namespace, result: dict[str, Any]
) -> None:
    """Gets ready, waits for its turn, measures into `result`."""
    say("imported")
    load_compiled(options.cache, case.name)
    compile_ahead(case, device)
    result["ready_s"] = round(time.perf_counter() - BEGIN_S, 1)
    save_compiled(options.cache, case.name)
    if options.warm:
        return
    print("READY", flush=True)
    if not sys.stdin.readline():
        return  # whoever started it is gone
    measure(case, device, result, has_loader=options.loader)


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*cases()])
    parser.add_argument("--eager", action="store_true", help="layers are not compiled")
    parser.add_argument("--cache", type=Path, help="folder of what was compiled before")
    parser.add_argument("--warm", action="store_true", help="compile, fill the folder, end")
    parser.add_argument("--checkpoints", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--no-loader", dest="loader", action="store_false", help="no wait for data")
    return parser.parse_args()


def say(what: str) -> None:
    """A line of the log, with the seconds since the process began."""
    print(f"{time.perf_counter() - BEGIN_S:6.1f} s  {what}", file=sys.stderr, flush=True)


def chosen_attention(case: Case) -> contextlib.AbstractContextManager[Any]:
    """Within it, cuDNN's attention wherever it can run if the case asks for it."""
    if case.attention == "flash":
        return contextlib.nullcontext()
    return sdpa_kernel(
        [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ],
        set_priority=True,
    )


def load_compiled(folder: Path | None, name: str) -> None:
    """Takes over what an earlier process compiled."""
    path = folder / f"{name}.gz" if folder else None
    if path is not None and path.exists():
        torch.compiler.load_cache_artifacts(gzip.decompress(path.read_bytes()))
        say(f"loaded {path.stat().st_size / 1e6:.1f} MB of compiled code")


def save_compiled(folder: Path | None, name: str) -> None:
    """Keeps what this process compiled."""
    artifacts = torch.compiler.save_cache_artifacts() if folder else None
    if folder is None or artifacts is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.gz"
    aside.write_bytes(gzip.compress(artifacts[0], 6))
    aside.replace(folder / f"{name}.gz")
    say(f"kept {(folder / f'{name}.gz').stat().st_size / 1e6:.1f} MB of compiled code")


def compile_ahead(case: Case, device: torch.device) -> None:
    """Two layers, two lengths, both ways of keeping activations: everything that is compiled."""
    model = network(case, is_small=True, device=device)
    say("small network")
    for checkpoints in case.checkpoints:
        trainer = Trainer(case, model, checkpoints=checkpoints)
        for count in AHEAD:
            trainer.step(batch_of(case, trainer, count))
            say(f"small step, {count} samples, checkpoints: {checkpoints}")
        trainer.close()
    del model, trainer
    forget()
    gc.freeze()  # what compiling left is not looked through again


def measure(case: Case, device: torch.device, result: dict[str, Any], *, has_loader: bool) -> None:
    """The whole network, each way of keeping activations at the largest batch that fits.

    Fills `result` and prints it after every way: what is cut off later is not lost.
    """
    begin_s = time.perf_counter()
    torch.manual_seed(0)  # rows of one network begin with the same weights
    model = network(case, is_small=False, device=device)
    say("network")
    parameters = [p for p in model.parameters() if not p.is_meta]
    learning = [p for p in parameters if p.requires_grad]
    result |= {
        "network": case.network,
        "has_tower": case.has_tower,
        "compute": case.precision.compute,
        "optimizer_states": case.precision.optimizer_states,
        "budget": case.budget,
        "attention": case.attention,
        "fuses_tower": case.fuses_tower,
        "gpu": torch.cuda.get_device_name(),
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
            learns_all = case.has_tower and not case.adapt.is_partial
            if has_loader and learns_all and "samples" in run:
                run["loader"] = waiting(model.config, trainer.step, run["samples"])
        except Exception as error:
            traceback.print_exc()
            run = {"checkpoints": checkpoints, "error": f"{type(error).__name__}: {error}"[:300]}
        result["runs"].append(run)
        result["wall_s"] = round(time.perf_counter() - begin_s, 1)
        print("RESULT " + json.dumps(result), flush=True)
        say(json.dumps(run))
        trainer.close()
        del trainer


def largest(case: Case, trainer: Trainer) -> dict[str, Any]:
    """Fits bytes = a + b * tokens to two small steps, then tries the largest batch they promise."""
    if case.max_samples is not None:
        return timed(case, trainer, case.max_samples)
    points = probed(trainer, lambda count: batch_of(case, trainer, count), say)
    forget()
    (few, low), (many, high) = points[-2:]
    per_token = max(1.0, (high - low) / (many - few))
    fixed = low - per_token * few
    free, total = torch.cuda.mem_get_info()
    usable = free + torch.cuda.memory_reserved() - RESERVE_BYTES
    tokens_per_sample = many / PROBES[len(points) - 1]
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
    for tried in (count, *lower(count)):
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
    steps = NUM_SHORT_STEPS if case.max_samples == 1 else NUM_STEPS
    for number in range(NUM_WARM_UP + steps):
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        loss = trainer.step(batches[number % 2])
        torch.cuda.synchronize()
        if number >= NUM_WARM_UP:
            times.append(time.perf_counter() - begin_s)
        losses.append(float(loss))
        say(f"step {number}, {count} samples: {time.perf_counter() - begin_s:.2f} s")
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
    batch = decisions(config, count, has_frames=case.has_tower, seed=seed)
    return batch.pin_memory() if trainer.device.type == "cuda" else batch


def forget() -> None:
    """Gives unused memory back and starts counting the peak anew."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()

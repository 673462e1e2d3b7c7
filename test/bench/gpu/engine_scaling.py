# SPDX-License-Identifier: Apache-2.0
"""How the training engine scales: the same work per GPU on 1, 2, ... of them, through FSDP2.

    python test/bench/gpu/engine_scaling.py --gpus 1 2 --steps 12

Each count runs as its own processes, by the same recipe, loader and loop as `nvila train`; the
decoder is shortened (`--layers`) so that one GPU holds it. Frames are noise, weights are random.
Prints one JSON line per count: tokens and samples per second, MFU, share of the time spent waiting
for data, and the efficiency against one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nvila_ros.training.data.sample import Sample

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("vision_tower", "mm_projector", "llm")
BEGIN_S = time.perf_counter()
NUM_SAMPLES = 64
WARM_UP = 4  # steps that compile and fill caches


def noise_samples(side: int) -> tuple[Sample, ...]:
    """Navigation decisions over eight frames of noise."""
    import numpy as np

    from nvila_ros.training.data.sample import Sample, Turn

    rng = np.random.default_rng(1)
    turn = Turn(user="Go to the red chair.", answer="The next action is move forward 75 cm.")
    return tuple(
        Sample(
            key=str(number),
            source="noise",
            kind="navigation",
            frames=tuple(rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(8)),
            turns=(turn,),
        )
        for number in range(NUM_SAMPLES)
    )


def worker(options: argparse.Namespace) -> None:
    """One rank: steps of the engine into a folder's log."""
    from shapes import random_model

    from nvila_ros.training.data.loader import Loader
    from nvila_ros.training.data.stream import ListSource
    from nvila_ros.training.distributed import start_ranks
    from nvila_ros.training.engine import Engine
    from nvila_ros.training.family import load_family
    from nvila_ros.training.monitor import Monitor
    from nvila_ros.training.stage_recipe import RECIPES, load_stage, recipe_path
    from nvila_ros.training.vocabulary import build_tokenizer

    count = int(os.environ["WORLD_SIZE"])
    sequences = options.sequences * count
    recipe = load_stage(
        recipe_path(options.family, "6_vln_sft"),
        [
            "schedule.samples=null",
            "schedule.steps=1000",
            f"batch.sequences={sequences}",
            f"precision.compute={options.compute}",
            f"engine.checkpoint_layers={str(options.recompute).lower()}",
            f"engine.compile_layers={str(not options.eager and not options.cpu).lower()}",
        ],
    )
    family = load_family(RECIPES / options.family)
    tokenizer = build_tokenizer()
    language = family.network.language
    language = dataclasses.replace(
        language,
        num_hidden_layers=options.layers,
        vocab_size=max(language.vocab_size, tokenizer.vocab_size),
    )
    network = dataclasses.replace(
        family.network, language=language, image_aspect_ratio="resize", num_video_frames=8
    )
    samples = noise_samples(network.vision.image_size)
    ranks = start_ranks(recipe, use_cpu=options.cpu)
    say("joined")
    # Drawn where that takes no time: a CPU draws a billion numbers in half a minute.
    model = random_model(network, ranks.device, torch.float32, PARTS).to("cpu")
    say("network")
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    settings = dataclasses.replace(
        recipe.data.loader, num_workers=options.workers, window=NUM_SAMPLES, fixed_length=True
    )
    source = ListSource("noise", samples)
    loader = Loader(
        {"noise": source},
        {"noise": 1.0},
        tokenizer,
        model.config,
        settings,
        rank=ranks.rank,
        num_ranks=ranks.count,
    )
    folder = Path(options.folder)
    engine = Engine(recipe, model, loader, ranks, folder)
    say("engine")
    with Monitor(
        folder, "scaling", is_main=ranks.is_main, device=ranks.device, num_ranks=ranks.count
    ) as monitor:
        for step in range(options.steps):
            engine.run(monitor, stop_after=step + 1)
            say(f"step {step + 1}")


def say(what: str) -> None:
    """A line on stderr, with the seconds since the process began."""
    print(f"{time.perf_counter() - BEGIN_S:6.1f} s  {what}", file=sys.stderr, flush=True)


def measure(count: int, arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Medians over the steps after the warm-up."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes = []
        for rank in range(count):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            variables = {key: str(value) for key, value in places.items()}
            variables |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(count)}
            variables |= {"PYTHONPATH": str(ROOT), **environment}
            command = [sys.executable, __file__, "--worker", "--folder", folder, *arguments]
            processes.append(subprocess.Popen(command, env={**os.environ, **variables}))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"{count} ranks ended with {codes}; their messages are above")
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").open()][WARM_UP:]
    names = ("wall_s", "tokens_per_s", "samples_per_s", "data_wait_share", "tflops", "mfu")
    return {
        name: round(statistics.median(line[name] for line in lines), 4)
        for name in names
        if name in lines[0]
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--family", default="nvila-lite-2b")
    parser.add_argument("--layers", type=int, default=8, help="of the decoder")
    parser.add_argument("--sequences", type=int, default=2, help="per GPU and step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=4, help="of the loader")
    parser.add_argument("--compute", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not compile the layers")
    parser.add_argument("--recompute", action="store_true", help="checkpoint the layers")
    parser.add_argument("--kind", choices=("fsdp", "ddp"), default="fsdp")
    parser.add_argument("--cpu", action="store_true", help="a rehearsal, not a measurement")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    environment = {"ACCELERATE_USE_FSDP": "true"} if options.kind == "fsdp" else {}
    passed = []
    for name in ("family", "layers", "sequences", "steps", "workers", "compute"):
        passed += [f"--{name}", str(getattr(options, name))]
    passed += ["--cpu"] if options.cpu else []
    passed += ["--recompute"] if options.recompute else []
    passed += ["--eager"] if options.eager else []
    alone: float | None = None
    for count in options.gpus:
        found = measure(count, passed, environment)
        alone = found["tokens_per_s"] if count == 1 else alone
        if alone:
            found["efficiency"] = round(found["tokens_per_s"] / count / alone, 3)
        print(json.dumps({"gpus": count, "kind": options.kind, **found}), flush=True)


if __name__ == "__main__":
    main()

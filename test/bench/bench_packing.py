# SPDX-License-Identifier: Apache-2.0
"""What packing gains: the same samples trained in padded batches and in packed sequences.

`python test/bench/bench_packing.py` takes the small network on a CPU; on a GPU
`--device cuda --network lite8b --layers 4` takes slices of a large one. The mixture is of questions
(one frame), text and decisions (eight frames): lengths differ as they do in a stage's mixture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.data.attention import SampleAttention, has_varlen
from nvila_ros.training.data.encoding import IGNORED, Encoded, encode
from nvila_ros.training.data.fuse import embed_batch
from nvila_ros.training.data.packing import PackedBatch, fill_bins, pack
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.vocabulary import build_tokenizer


def mixture(count: int, seed: int = 0) -> list[Sample]:
    """Half questions about a view, a quarter text, a quarter decisions; in random order."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        frames = tuple(rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
        words = "go past the red sofa then " * int(rng.integers(1, 5))
        kind = rng.choice(["question", "question", "text", "decision"])
        if kind == "text":
            turns = tuple(Turn(user=words, answer=words) for _ in range(int(rng.integers(1, 4))))
            found.append(Sample(key=str(number), source="t", kind="text", frames=(), turns=turns))
        elif kind == "question":
            turn = Turn(user=f"<image>\n{words}?", answer="It is ahead, two meters.")
            found.append(
                Sample(key=str(number), source="q", kind="image", frames=frames[:1], turns=(turn,))
            )
        else:
            turn = Turn(user=words, answer="The next action is stop.")
            found.append(
                Sample(key=str(number), source="d", kind="navigation", frames=frames, turns=(turn,))
            )
    return found


def padded(samples: list[Encoded]) -> PackedBatch:
    """A classic batch laid end to end: every sample as long as the longest."""
    longest = max(len(sample) for sample in samples)

    def extended(sample: Encoded) -> Encoded:
        missing = longest - len(sample)
        return dataclasses.replace(
            sample,
            ids=F.pad(sample.ids, (0, missing), value=int(sample.ids[0])),
            labels=F.pad(sample.labels, (0, missing), value=IGNORED),
        )

    return pack([extended(sample) for sample in samples])


def step(model: Nvila, batch: PackedBatch, implementation: str | None) -> torch.Tensor:
    """Loss and gradients; without an implementation rows of equal length attend causally."""
    batch = batch.to(model.device, model.dtype)
    embeds = embed_batch(model, batch)
    if implementation is None:
        shape = (len(batch.lengths), batch.lengths[0])
        hidden = model(embeds.view(*shape, -1), batch.positions.view(shape)).flatten(0, 1)
    else:
        attention = SampleAttention(batch.segments, model.device, implementation, model.dtype)  # type: ignore[arg-type]
        hidden = model(embeds, batch.positions, None, attention)[0]
    targets = batch.targets
    learned = targets != IGNORED
    logits = model.logits(hidden[learned]).float()
    loss = F.cross_entropy(logits, targets[learned], reduction="sum")
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def seconds(function: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median time after a first round: wall on a GPU, of this process on a CPU, which is shared."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin_s = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - begin_s)
    return statistics.median(times)


def network(name: str, layers: int, device: torch.device) -> Nvila:
    """The small network, or a slice of a released size with random weights."""
    tokenizer = build_tokenizer()
    if name == "nano":
        from nvila_ros.models.config import nano_config

        config = nano_config(tokenizer.vocab_size)
    else:
        sys.path.insert(0, str(Path(__file__).parent / "gpu"))
        from shapes import config_of

        config = config_of(name)
        config = dataclasses.replace(
            config, language=dataclasses.replace(config.language, num_hidden_layers=layers)
        )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = Nvila.from_scratch(config).to(device, dtype)
    model.vision_tower.requires_grad_(device.type == "cpu")  # frozen, as in stage 3: memory
    return model


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", default="nano")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="samples of a padded batch")
    parser.add_argument("--max-tokens", type=int, default=0, help="0: as many as a padded batch")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    model = network(arguments.network, arguments.layers, device)
    tokenizer = build_tokenizer()
    samples = [encode(row, tokenizer, model.config) for row in mixture(arguments.samples)]
    lengths = [len(sample) for sample in samples]
    classic = [
        padded(samples[start : start + arguments.batch])
        for start in range(0, len(samples), arguments.batch)
    ]
    capacity = arguments.max_tokens or max(len(batch) for batch in classic)
    packed = [
        pack([samples[index] for index in members]) for members in fill_bins(lengths, capacity)
    ]
    ways: list[tuple[str, list[PackedBatch], str | None]] = [("padded", classic, None)]
    names = ["split"] if device.type == "cpu" else ["split", "dense", "flex"]
    names += ["varlen"] if device.type == "cuda" and has_varlen() else []
    ways += [(f"packed, {name}", packed, name) for name in names]
    result: dict[str, object] = {
        "network": arguments.network,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "tokens": sum(lengths),
        "mean_length": sum(lengths) / len(lengths),
        "ways": {},
    }
    for name, batches, implementation in ways:
        try:
            losses = [float(step(model, batch, implementation)) for batch in batches]

            def run(batches=batches, implementation=implementation) -> None:
                for batch in batches:
                    step(model, batch, implementation)

            spent_s = seconds(run, device, arguments.repeats)
        except Exception as error:  # a way that fails leaves the others their figures
            result["ways"][name] = {"error": repr(error)[:300]}  # type: ignore[index]
            continue
        places = sum(len(batch) for batch in batches)
        result["ways"][name] = {  # type: ignore[index]
            "loss_per_target": sum(losses) / sum(batch.num_targets for batch in batches),
            "sequences": len(batches),
            "padding_share": 1 - sum(lengths) / places,
            "seconds": spent_s,
            "tokens_per_s": sum(lengths) / spent_s,
            "samples_per_s": len(samples) / spent_s,
        }
        print(name, json.dumps(result["ways"][name]), flush=True, file=sys.stderr)  # type: ignore[index]
    print(json.dumps(result))


if __name__ == "__main__":
    main()

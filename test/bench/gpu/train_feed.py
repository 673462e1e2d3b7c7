# SPDX-License-Identifier: Apache-2.0
"""The loader at full size: navigation samples with JPEG frames, resized and packed by workers.

`python train_feed.py` measures it alone, on processors; a training row takes its batches to see how
long it waits for them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from shapes import config_of

from nvila_ros.actions import ACTIONS
from nvila_ros.models.config import NvilaConfig
from nvila_ros.training.data.loader import Loader, LoaderSettings
from nvila_ros.training.data.packing import PackedBatch
from nvila_ros.training.data.sample import FrameBytes, Sample, Turn
from nvila_ros.training.data.stream import ListSource
from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

NUM_SAMPLES, FRAME_SIDE_PX = 64, 512  # pictures as simulators render them
INSTRUCTION = "walk past the red sofa through the second door and stop beside the round table"


def make_loader(
    config: NvilaConfig,
    samples_per_batch: int,
    *,
    num_workers: int,
    start_method: str = "forkserver",
) -> Loader:
    """Batches of about so many decisions, eight of each one's frames shown."""
    tokenizer = build_nano_tokenizer(INSTRUCTION.split())
    length = 8 * (config.tokens_per_frame + 1) + 100
    settings = LoaderSettings(
        max_tokens=samples_per_batch * length,
        multiple=128,
        window=max(16, samples_per_batch),
        num_workers=num_workers,
        start_method=start_method,  # type: ignore[arg-type]
        pins_memory=False,
    )
    source = ListSource("drives", tuple(_sample(number) for number in range(NUM_SAMPLES)))
    return Loader({"drives": source}, {"drives": 1.0}, tokenizer, config, settings)


def _sample(number: int) -> Sample:
    """A decision with eight different frames, each decoded and resized."""
    frames = tuple(FrameBytes(_jpeg(number * 8 + index)) for index in range(8))
    turn = Turn(user=INSTRUCTION, answer=ACTIONS[number % len(ACTIONS)].sentence)
    return Sample(key=str(number), source="drives", kind="navigation", frames=frames, turns=(turn,))


def _jpeg(seed: int) -> bytes:
    """A picture with edges and noise, about as many bytes as a rendered room."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((FRAME_SIDE_PX, FRAME_SIDE_PX), Image.Resampling.BICUBIC))
    noisy = np.clip(picture + random.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(noisy).save(content, format="JPEG", quality=90)
    return content.getvalue()


def waiting(
    config: NvilaConfig, step: Callable[[PackedBatch], Any], samples_per_batch: int, steps: int = 8
) -> dict[str, Any]:
    """How much of the wall time of steps is waiting for batches, after the first two."""
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    loader = make_loader(config, samples_per_batch, num_workers=workers)
    iterator, wait_s, begin_s, num_samples = iter(loader), 0.0, 0.0, 0
    for number in range(steps + 2):
        if number == 2:
            wait_s, begin_s, num_samples = 0.0, time.perf_counter(), 0
        asked_s = time.perf_counter()
        batch = next(iterator)
        wait_s += time.perf_counter() - asked_s
        step(batch)
        num_samples += len(batch.lengths)
    wall_s = time.perf_counter() - begin_s
    loader.close()
    return {
        "num_workers": workers,
        "wait_share": round(wait_s / wall_s, 4),
        "wait_ms_per_step": round(1e3 * wait_s / steps, 2),
        "samples_per_s": round(num_samples / wall_s, 2),
    }


def main() -> None:
    """Decisions per second that the loader gives with nothing else to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    config = config_of("lite8b")
    loader = make_loader(config, 4, num_workers=arguments.workers)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    begin_s, samples = time.perf_counter(), 0
    while time.perf_counter() - begin_s < arguments.seconds:
        samples += len(next(iterator).lengths)
    rate = samples / (time.perf_counter() - begin_s)
    loader.close()
    result = {
        "num_workers": arguments.workers,
        "num_cores": os.cpu_count(),
        "decisions_per_s": round(rate, 2),
        "frames_per_s": round(8 * rate, 1),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

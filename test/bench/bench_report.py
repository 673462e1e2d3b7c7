# SPDX-License-Identifier: Apache-2.0
"""Time and size of a report: many episodes made of a few real ones, no picture equal to another.

nvila simulate --seeds 900000:900012 --report /tmp/a --keep /tmp/rollouts
python test/bench/bench_report.py /tmp/rollouts /tmp/report --episodes 1000
"""

import argparse
import dataclasses
import io
import json
import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image

from nvila_ros.evaluation.episode_units import SUFFIX, read_rollout
from nvila_ros.evaluation.html_report import write_rollout_report
from nvila_ros.evaluation.rollout import small_picture


def noisy(frame, rng):
    """The same view with other bytes: a shift of its colours and a little noise."""
    rgb = np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")).astype(float)
    changed = rgb + rng.integers(-3, 4, (1, 1, 3)) + rng.normal(0.0, 1.0, rgb.shape)
    return small_picture(np.clip(changed, 0, 255).astype(np.uint8))


def copies(rollouts, count, rng):
    """`count` rollouts with keys of their own; the first 40 pictures of each are its own too."""
    for number in range(count):
        rollout = rollouts[number % len(rollouts)]
        frames = tuple(noisy(frame, rng) for frame in rollout.frames[:40]) + rollout.frames[40:]
        episode = dataclasses.replace(rollout.episode, seed=number)
        metrics = dataclasses.replace(rollout.metrics, seed=number)
        yield dataclasses.replace(rollout, episode=episode, metrics=metrics, frames=frames)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rollouts", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--episodes", type=int, default=1000)
    options = parser.parse_args()
    real = [read_rollout(path) for path in sorted(options.rollouts.glob(f"*{SUFFIX}"))]
    rollouts = list(copies(real, options.episodes, np.random.default_rng(0)))
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    run = {"title": "bench", "success_radius_m": 1.0}
    page = write_rollout_report(options.report, run, rollouts)
    result = {
        "episodes": len(rollouts),
        "decisions": sum(len(rollout.actions) for rollout in rollouts),
        "wall_s": time.perf_counter() - begin_s,
        "cpu_s": time.process_time() - begin_cpu_s,
        "page_mb": page.stat().st_size / 1e6,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

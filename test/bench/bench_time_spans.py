# SPDX-License-Identifier: Apache-2.0
"""When was it passed? Mean IoU on held-out drives, beside answers that look at nothing.

python test/bench/bench_time_spans.py MODEL --drives 200
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nvila_ros.errors import SceneError
from nvila_ros.models import weights
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.scores import answer, score_answers, task_of
from nvila_ros.training.simulator_source import HELD_OUT_SEED, SimulatorOptions, scene_samples
from nvila_ros.training.time_tokens import mean_iou, span_iou, spans_in

NUM_RESAMPLES = 2000
TRAINING_SEED = 1_000


def samples_of(first_seed: int, num_drives: int, options: SimulatorOptions) -> Iterator[Sample]:
    """Questions about the drives of these apartments."""
    for seed in range(first_seed, first_seed + num_drives):
        try:
            yield from scene_samples(seed, options)
        except SceneError:
            continue


def shares(samples: list[Sample]) -> np.ndarray:
    """(N, 2) begin and end of each true span as shares of its drive."""
    return np.array([s.time_spans_s[0] for s in samples]) / [[s.duration_s] for s in samples]


def best_constant(spans: np.ndarray) -> tuple[float, float]:
    """The one span of fiftieths of a drive that overlaps most with all of these, on average."""
    edges = np.linspace(0.0, 1.0, 51)
    pairs = [(a, b) for a in edges for b in edges if a < b]
    return max(pairs, key=lambda pair: np.mean([span_iou(pair, tuple(span)) for span in spans]))


def interval(values: np.ndarray) -> list[float]:
    """95 % interval of the mean, by resampling."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (NUM_RESAMPLES, len(values))).mean(1)
    return [float(bound) for bound in np.quantile(means, (0.025, 0.975))]


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drives", type=int, default=200)
    arguments = parser.parse_args()
    model, tokenizer = weights.load(arguments.model)
    config = model.config
    options = SimulatorOptions(
        stage="video",
        side_px=config.vision.image_size,
        num_time_tokens=config.num_time_tokens,
    )
    held_out = list(samples_of(HELD_OUT_SEED, arguments.drives, options))
    answered = [(sample, answer(model, tokenizer, sample)) for sample in held_out]
    asked = [(s, text) for s, text in answered if task_of(s) == "when"]
    learned = [
        s for s in samples_of(TRAINING_SEED, arguments.drives, options) if task_of(s) == "when"
    ]
    spans, constant = shares([s for s, _ in asked]), best_constant(shares(learned))
    found = {
        "model": [mean_iou(text, s.time_spans_s, config, s.duration_s) for s, text in asked],
        "whole drive": [span_iou((0.0, 1.0), tuple(span)) for span in spans],
        "best constant": [span_iou(constant, tuple(span)) for span in spans],
        "another drive's answer": [  # it says what the model says, elsewhere
            max((span_iou(tuple(span), one) for one in spans_in(text, config, 1.0)[:1]), default=0)
            for span, (_, text) in zip(spans, asked[1:] + asked[:1], strict=True)
        ],
    }
    result = {
        "scores": {k: v.to_json() for k, v in score_answers(answered, config).items()},
        "best_constant": constant,
        "mean_span_share": float(np.diff(spans).mean()),
        "mean_iou": {
            name: {"mean": float(np.mean(values)), "interval": interval(np.array(values))}
            for name, values in found.items()
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""DeltaLoss: how much likelier a large model finds a sample's answers than a small one does.

NVILA (arXiv 2412.04468 v3, equations 1 and 2): Delta(x) = log(p_large(x) / p_small(x)), where p is
the probability of the answer's tokens. The paper does not say whether it sums over tokens or takes
their mean; both are kept. "Answer" is what training learns: the words of every answer and the token
that ends it. Models with tokenizers of their own each count their own tokens.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.models import weights
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.attention import SampleAttention
from nvila_ros.training.data.encoding import IGNORED, Encoded, encode
from nvila_ros.training.data.fuse import embed_batch, model_dtype
from nvila_ros.training.data.mixture import SourceConfig, open_source
from nvila_ros.training.data.packing import PackedBatch, fill_bins, pack
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.units import unit_rows
from nvila_ros.training.scale import Unit

SCORES_SUFFIX = ".scores.jsonl"
ROWS_PER_LOGITS = 512  # learned places whose scores over the vocabulary are in memory at once
SAMPLES_AT_ONCE = 64  # whose pixels are in memory
MODELS = ("large", "small")


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """What is scored by which models; sent to every process."""

    sources: tuple[SourceConfig, ...]
    large: str  # checkpoint folders
    small: str
    device: str = "cpu"
    dtype: str | None = None  # None: float32 on a CPU, bfloat16 elsewhere
    rows_per_unit: int = 512  # of files of rows; shards are units themselves
    max_tokens: int = 4096  # of a packed sequence
    max_tiles: int = 96
    keeps_features: bool = True  # the large tower's mean feature per sample, for clusters

    def __hash__(self) -> int:
        return hash(json.dumps(self.describe(), sort_keys=True))

    def proof(self, unit: Unit) -> str:
        """See `Job`."""
        return f"{unit.name}{SCORES_SUFFIX}"

    def worker(self) -> Scorer:
        """See `Job`."""
        return Scorer(self)

    def describe(self) -> dict[str, Any]:
        """See `Job`; the device may change between runs."""
        return {
            "what": "delta_loss",
            "sources": [
                {key: value for key, value in vars(source).items() if key != "weight"}
                for source in self.sources
            ],
            "large": self.large,
            "small": self.small,
            "rows_per_unit": self.rows_per_unit,
            "max_tokens": self.max_tokens,
            "keeps_features": self.keeps_features,
        }


class Scorer:
    """Both models, scoring one unit at a time; a unit's content is (source name, inner unit)."""

    def __init__(self, job: ScoreJob) -> None:
        self.job = job
        self.sources = {config.name: open_source(config) for config in job.sources}
        device = torch.device(job.device)
        if job.dtype is not None:
            dtype = getattr(torch, job.dtype, None)
            if not isinstance(dtype, torch.dtype):
                raise ConfigError(f"dtype is {job.dtype!r}; float32, bfloat16 or float16 expected")
        else:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.models = {name: weights.load(getattr(job, name), device, dtype) for name in MODELS}

    def __call__(self, unit: Unit) -> dict[str, bytes]:
        """The unit's scores as JSON lines, broken rows among them with their reason."""
        source_name, inner = unit.content
        rows: list[dict[str, Any]] = []
        samples: list[Sample] = []
        for item in unit_rows(self.sources[source_name], inner):
            if isinstance(item, Sample):
                samples.append(item)
            else:
                rows.append({"key": item.row, "source": item.source, "broken": item.reason})
        rows += score(
            samples,
            self.models,
            max_tokens=self.job.max_tokens,
            max_tiles=self.job.max_tiles,
            keeps_features=self.job.keeps_features,
        )
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return {f"{unit.name}{SCORES_SUFFIX}": content}


def score(
    samples: Sequence[Sample],
    models: dict[str, tuple[Nvila, Tokenizer]],
    *,
    max_tokens: int = 4096,
    max_tiles: int = 96,
    keeps_features: bool = True,
) -> list[dict[str, Any]]:
    """One row per sample, in order: each model's sum and count, `delta_sum`, `delta_mean`."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(samples), SAMPLES_AT_ONCE):
        part = samples[start : start + SAMPLES_AT_ONCE]
        found: list[dict[str, Any]] = [{"key": s.key, "source": s.source} for s in part]
        for name in MODELS:
            _score_with(name, models[name], part, found, max_tokens, max_tiles, keeps_features)
        rows += [_finished(row) for row in found]
    return rows


def _score_with(
    name: str,
    loaded: tuple[Nvila, Tokenizer],
    samples: Sequence[Sample],
    rows: list[dict[str, Any]],
    max_tokens: int,
    max_tiles: int,
    keeps_features: bool,
) -> None:
    """Adds one model's numbers to the rows, or why a sample cannot be scored."""
    model, tokenizer = loaded
    limit = min(max_tokens, model.config.language.model_max_length)
    encoded: dict[int, Encoded] = {}
    for number, sample in enumerate(samples):
        if "broken" in rows[number]:
            continue
        try:
            encoded[number] = encode(sample, tokenizer, model.config, max_length=limit)
        except DataError as error:
            rows[number]["broken"] = str(error)
    for members, batch in _batches(encoded, max_tokens, max_tiles):
        batch = batch.to(model.device, model_dtype(model))
        pools = keeps_features and name == "large"
        sums, counts, features = answer_log_probabilities(model, batch, pools=pools)
        for place, number in enumerate(members):
            rows[number][f"sum_{name}"] = float(sums[place])
            rows[number][f"tokens_{name}"] = int(counts[place])
            if (feature := features[place]) is not None:
                rows[number]["feature"] = _packed(feature)


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """With both deltas, or only the reason."""
    if "broken" in row:
        return {name: row[name] for name in ("key", "source", "broken")}
    mean_large = row["sum_large"] / row["tokens_large"]
    mean_small = row["sum_small"] / row["tokens_small"]
    return {
        **row,
        "delta_sum": row["sum_large"] - row["sum_small"],
        "delta_mean": mean_large - mean_small,
    }


def _batches(
    encoded: dict[int, Encoded], max_tokens: int, max_tiles: int
) -> Iterator[tuple[list[int], PackedBatch]]:
    """Samples of like length and few tiles together; a sample above `max_tiles` stands alone."""
    numbers = [*encoded]
    lengths = [len(encoded[number]) for number in numbers]
    tiles = [min(len(encoded[number].tiles), max_tiles) for number in numbers]
    for bin_ in fill_bins(lengths, max_tokens, max_tiles, tiles) if numbers else []:
        members = [numbers[index] for index in bin_]
        yield members, pack([encoded[number] for number in members])


@torch.inference_mode()
def answer_log_probabilities(
    model: Nvila, batch: PackedBatch, *, pools: bool = False
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Log probability of each sample's answers (n,) float64, their tokens (n,), mean features.

    `batch` is on the model's device with float pixels. With `pools` a mean feature is the tower's
    over all patches of all tiles of a sample, (C,) float32; None for a sample without pictures.
    """
    patches: list[Tensor] = []
    hook = model.vision_tower.register_forward_hook(
        lambda module, inputs, output: patches.append(output)
    )
    try:
        embeds = embed_batch(model, batch, touches_all=False)
    finally:
        hook.remove()
    attention = SampleAttention(batch.segments, model.device, dtype=model.dtype)
    hidden = model(embeds, batch.positions, None, attention)[0]
    targets = batch.targets
    learned = (targets != IGNORED).nonzero()[:, 0]
    owners = batch.sample_ids[learned].long()
    sums = torch.zeros(len(batch.lengths), dtype=torch.float64, device=hidden.device)
    for part, owner in zip(
        learned.split(ROWS_PER_LOGITS), owners.split(ROWS_PER_LOGITS), strict=True
    ):
        scores = model.logits(hidden[part]).float().log_softmax(-1)
        chosen = scores.gather(1, targets[part, None])[:, 0]
        sums.index_add_(0, owner, chosen.double())
    counts = torch.bincount(owners, minlength=len(batch.lengths))
    features: list[Tensor | None] = [None] * len(batch.lengths)
    if pools and patches:
        means = patches[0].float().mean(1)[batch.tile_rows].cpu().split(batch.num_tiles)
        features = [own.mean(0) if len(own) else None for own in means]
    return sums.cpu(), counts.cpu(), features


def _packed(feature: Tensor) -> str:
    """(C,) as base64 of float16."""
    return base64.b64encode(feature.numpy().astype(np.float16).tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """The inverse: (C,) float32."""
    return np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32)

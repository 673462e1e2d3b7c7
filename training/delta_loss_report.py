# SPDX-License-Identifier: Apache-2.0
"""DeltaLoss as people see it: one HTML file with easy, helpful and distracting samples."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import DataError
from nvila_ros.training.data.mixture import SourceConfig, open_source
from nvila_ros.training.data.sample import Sample
from nvila_ros.training.data.sheet import Card, draw_card
from nvila_ros.training.data.units import source_units, unit_rows
from nvila_ros.training.delta_loss_prune import By, Score, Scores
from nvila_ros.training.scale import JOB_NAME, Unit, write_atomically

NUM_EXAMPLES, NUM_BINS, PLOT_PX = 6, 48, (620, 120)
KINDS = {
    "easy": "Both models are sure (Delta near 0, the answer likely): little is left to learn.",
    "helpful": "The large model knows, the small one does not (largest Delta): kept.",
    "distracting": "The small model knows better (smallest Delta): often a wrong label.",
}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2em auto;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:"
    "1px solid #ddd}td:first-child,th:first-child{text-align:left}img{display:block;margin:.4em 0;"
    "max-width:100%;border:1px solid #ddd}h3{margin-bottom:0}"
)


def examples(subset: Sequence[Score], by: By, count: int = NUM_EXAMPLES) -> dict[str, list[Score]]:
    """The samples that stand for each kind; none stands for two."""
    ranked = sorted(subset, key=lambda score: (-score.delta(by), score.key))
    count = min(count, len(ranked) // 3)
    helpful, distracting = ranked[:count], ranked[::-1][:count]
    likely = float(np.median([score.mean_large for score in subset]))
    rest = [score for score in ranked[count : len(ranked) - count] if score.mean_large >= likely]
    easy = sorted(rest, key=lambda score: (abs(score.delta(by)), score.key))[:count]
    return {
        "easy": easy,
        "helpful": [score for score in helpful if score.delta(by) > 0],
        "distracting": [score for score in distracting if score.delta(by) < 0],
    }


def write_report(
    scores: Scores,
    summary: dict[str, Any],
    sources: Sequence[SourceConfig],
    rows_per_unit: int,
    path: Path,
) -> None:
    """One self-contained HTML file."""
    by: By = summary["by"]
    chosen = {source: examples(subset, by) for source, subset in scores.subsets().items()}
    wanted = [score for kinds in chosen.values() for found in kinds.values() for score in found]
    samples = _read_again(wanted, sources, rows_per_unit)
    parts = [
        f"<!doctype html><meta charset=utf-8><title>DeltaLoss</title><style>{STYLE}</style>",
        f"<h1>DeltaLoss, {by} over answer tokens</h1>",
        f"<p>{len(scores.good)} samples scored, {scores.num_broken} rows broken; "
        f"{summary['keep']:.0%} of each subset kept.</p>",
        _methods_table(summary),
    ]
    for source, subset in scores.subsets().items():
        own = summary["subsets"][source]
        parts += [
            f"<h2>{html.escape(source)}</h2>",
            f"<p>{own['num_samples']} samples, {own['num_kept']} kept above Delta "
            f"{own['threshold']:.3f}; {own['share_negative']:.0%} below zero.</p>",
            _histogram([score.delta(by) for score in subset], own["threshold"]),
        ]
        for kind, found in chosen[source].items():
            parts.append(f"<h3>{kind}</h3><p>{KINDS[kind]}</p>")
            if not found:
                parts.append("<p>None.</p>")
            for score in found:
                parts.append(_picture(samples.get((score.source, score.key)), score))
    write_atomically(path, "\n".join(parts).encode())


def score_units(sources: Sequence[SourceConfig], rows_per_unit: int) -> list[Unit]:
    """The units of a `ScoreJob`: (source name, inner unit)."""
    return [
        Unit(inner.name, (config.name, inner))
        for config in sources
        for inner in source_units(open_source(config), rows_per_unit)
    ]


def read_job(folder: Path) -> tuple[tuple[SourceConfig, ...], int]:
    """The sources that a folder of scores is of, and the rows of its units."""
    try:
        job = json.loads((folder / JOB_NAME).read_text(encoding="utf-8"))
        sources = tuple(SourceConfig(**entry) for entry in job["sources"])
        return sources, int(job["rows_per_unit"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / JOB_NAME} does not say what was scored ({error!r}); score again, or prune "
            "with --no-report"
        ) from None


def _read_again(
    wanted: Sequence[Score], sources: Sequence[SourceConfig], rows_per_unit: int
) -> dict[tuple[str, str], Sample]:
    """The samples behind scores, from the units that held them."""
    names = {score.unit for score in wanted}
    keys = {(score.source, score.key) for score in wanted}
    opened = {config.name: open_source(config) for config in sources}
    found: dict[tuple[str, str], Sample] = {}
    for unit in score_units(sources, rows_per_unit):
        if unit.name in names:
            source_name, inner = unit.content
            for item in unit_rows(opened[source_name], inner):
                if isinstance(item, Sample) and (item.source, item.key) in keys:
                    found[item.source, item.key] = item
    return found


def _picture(sample: Sample | None, score: Score) -> str:
    caption = (
        f"Delta {score.delta_mean:+.3f} per token, {score.delta_sum:+.3f} in sum; "
        f"large {score.mean_large:.3f}"
    )
    if sample is None:
        return f"<p>{html.escape(score.key)}: {caption} (no longer in the data)</p>"
    buffer = io.BytesIO()
    draw_card(Card(sample, caption)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(score.key)}" src="data:image/png;base64,{data}">'


def _methods_table(summary: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{name}<td>{own['num_kept']}<td>{own['mean_delta']:.3f}"
        f"<td>{own['share_negative']:.0%}<td>{own['shared_with_delta']:.0%}"
        for name, own in summary["methods"].items()
    )
    return (
        "<table><tr><th>chosen by<th>kept<th>mean Delta<th>below zero<th>also chosen by Delta"
        f"{rows}</table>"
    )


def _histogram(values: Sequence[float], threshold: float) -> str:
    """Counts of Delta between its 1st and 99th percentile; kept ones are dark."""
    low, high = np.percentile(values, [1, 99])
    high = max(high, low + 1e-6)
    counts, edges = np.histogram(np.clip(values, low, high), NUM_BINS, (low, high))
    width, height = PLOT_PX
    bars = "".join(
        f'<rect x="{width * index / NUM_BINS:.1f}" y="{height * (1 - count / counts.max()):.1f}" '
        f'width="{width / NUM_BINS - 1:.1f}" height="{height * count / counts.max():.1f}" '
        f'fill="{"#2a6" if edges[index + 1] > threshold else "#bbb"}"/>'
        for index, count in enumerate(counts)
    )
    return (
        f'<svg width="{width}" height="{height + 18}">{bars}<text x="0" y="{height + 14}" '
        f'font-size="11">{low:.2f}</text><text x="{width}" y="{height + 14}" font-size="11" '
        f'text-anchor="end">{high:.2f}</text></svg>'
    )

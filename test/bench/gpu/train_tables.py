# SPDX-License-Identifier: Apache-2.0
"""The figures of `bench_train.py` as the tables of docs/training.md and its notes."""

from __future__ import annotations

from typing import Any

# v3 of the paper, table 5: samples/s on 64 H100 and the batch of each.
PAPER_FP8 = {
    ("bfloat16", False): (4, 199.2, 1.0),
    ("float8", False): (16, 390.1, 2.0),
    ("bfloat16", True): (30, 491.7, 2.5),
    ("float8", True): (36, 579.9, 2.9),
}
# Table 6: GB and steps/s on one A100, batch 1, activations kept.
PAPER_TUNING = {
    "lora_lora": (20.1, 3.4),
    "ln_lora": (19.2, 4.5),
    "lora_qlora": (11.1, 2.6),
    "ln_qlora": (10.2, 3.1),
}


def tables(rows: dict[str, dict[str, Any]]) -> str:
    """All tables for which there are rows."""
    return "\n\n".join(part for part in (float8(rows), utilisation(rows), tuning(rows)) if part)


def float8(rows: dict[str, dict[str, Any]]) -> str:
    """BF16 against FP8, each at the largest batch that fits."""
    runs = list(_runs(rows, "decoder_"))
    if not runs:
        return ""
    base = next(
        (r for row, r in runs if row["compute"] == "bfloat16" and not r["checkpoints"]), None
    )
    lines = [
        "| activations | compute | largest batch | GB | samples/s | tokens/s | TFLOP/s | ratio "
        "| paper |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, run in sorted(runs, key=lambda each: each[1]["checkpoints"]):
        ratio = f"{run['samples_per_s'] / base['samples_per_s']:.2f}" if base else "-"
        paper = PAPER_FP8[row["compute"].split("_")[0], run["checkpoints"]]
        lines.append(
            f"| {kept(row, run)} | {row['compute']} | {run['samples']} | {run['peak_gb']:.1f} | "
            f"{run['samples_per_s']:.2f} | {run['tokens_per_s']} | {run['tflop_per_s']:.0f} | "
            f"{ratio} | {paper[2]:.1f} (batch {paper[0]}) |"
        )
    return "\n".join(lines)


def utilisation(rows: dict[str, dict[str, Any]]) -> str:
    """MFU of whole networks, tower and projector learning too."""
    runs = list(_runs(rows, "lite"))
    if not runs:
        return ""
    lines = [
        "| row | activations | batch | GB | step, ms | samples/s | tokens/s | TFLOP/s | MFU "
        "| data wait |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['row']} | {kept(row, run)} | {run['samples']} | {run['peak_gb']:.1f} | "
        f"{run['step_ms']:.0f} | "
        f"{run['samples_per_s']:.2f} | {run['tokens_per_s']} | {run['tflop_per_s']:.0f} | "
        f"{100 * run['mfu']:.1f} % | {waited(run)} |"
        for row, run in runs
    ]
    return "\n".join(lines)


def kept(row: dict[str, Any], run: dict[str, Any]) -> str:
    """What happens to activations, in words."""
    is_compiled = row.get("is_compiled", True)
    text = (
        "kept" if row.get("budget", 1.0) == 1.0 or not is_compiled else f"{row['budget']:.0%} kept"
    )
    text = "made again" if run["checkpoints"] else text
    return text if is_compiled else f"{text}, not compiled"


def waited(run: dict[str, Any]) -> str:
    """The share of a step's time that went into waiting for data."""
    return f"{100 * run['loader']['wait_share']:.2f} %" if "loader" in run else "not measured"


def tuning(rows: dict[str, dict[str, Any]]) -> str:
    """Fine-tuning one decision at a time: memory and steps per second."""
    lines = [
        "| tower + decoder | activations | GB | reserved GB | steps/s | fits 24 GB "
        "| paper (A100) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (paper_gb, paper_rate) in PAPER_TUNING.items():
        for row, run in _runs(rows, name):
            fits = "yes" if run["reserved_gb"] + 0.6 < 24 else "no"  # and the context
            lines.append(
                f"| {name.replace('_', ' + ')} | {kept(row, run)} | {run['peak_gb']:.1f} | "
                f"{run['reserved_gb']:.1f} | {run['steps_per_s']:.2f} | {fits} | "
                f"{paper_gb} GB, {paper_rate}/s |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def _runs(rows: dict[str, dict[str, Any]], prefix: str) -> Any:
    """(row, run) of everything that was measured under names with this prefix."""
    for name, row in rows.items():
        if name.startswith(prefix):
            yield from ((row, run) for run in row.get("runs", ()) if "samples_per_s" in run)

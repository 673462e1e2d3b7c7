# SPDX-License-Identifier: Apache-2.0
"""What `nvila data check` found, as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from nvila_ros.training.data.check import CheckReport


def print_check(report: CheckReport, content: dict[str, Any]) -> None:
    """Tables for people."""
    console = Console()
    table = Table(title=f"{report.num_samples} samples, {report.num_broken} broken rows")
    for title in ("subset", "kind", "samples", "turns", "frames", "answer characters"):
        table.add_column(title)
    for name, subset in content["subsets"].items():
        table.add_row(
            name,
            ", ".join(subset["kinds"]),
            str(subset["num_samples"]),
            str(subset["num_turns"]),
            f"{subset['mean_frames']:.1f} (at most {subset['max_frames']})",
            f"{subset['mean_answer_characters']:.1f}",
        )
    console.print(table)
    for name, subset in content["subsets"].items():
        labels = Table(title=f"{name}: {subset['num_labels']} different answers")
        for title in ("answer", "samples", "share"):
            labels.add_column(title)
        for label, count in subset["labels"].items():
            labels.add_row(label[:70], str(count), f"{count / subset['num_samples']:.1%}")
        console.print(labels)
        if "tokens" in subset:
            console.print(f"tokens: {subset['tokens']}")
    if "packing" in content:
        console.print(f"packing: {content['packing']}")
    console.print(f"{report.num_pictures} pictures: {content['picture_sizes']}")
    for row in report.examples:
        console.print(f"broken: {row.where}, row {row.row}: {row.reason}", markup=False)
    if "sheet" in content:
        console.print(content["sheet"])

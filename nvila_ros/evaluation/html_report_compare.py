# SPDX-License-Identifier: Apache-2.0
"""Two runs side by side: a page, a table and an object."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvila_ros.evaluation import compare as comparing
from nvila_ros.evaluation import report
from nvila_ros.evaluation.compare import Difference, Run
from nvila_ros.evaluation.html_report import PAGE_NAME, environment, page_constants, safe_json

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {
    "success": "SR  success rate",
    "oracle_success": "OS  oracle success rate",
    "spl": "SPL",
    "navigation_error_m": "NE  navigation error, m",
    "ndtw": "nDTW",
    "sdtw": "SDTW",
    "trajectory_length_m": "TL  trajectory length, m",
    "num_decisions": "decisions per episode",
}
LESS_IS_BETTER = ("navigation_error_m", "num_decisions")
NEITHER_IS_BETTER = ("trajectory_length_m",)
OUTCOMES = {
    "only_first": "only A arrived",
    "only_second": "only B arrived",
    "both": "both arrived",
    "neither": "neither arrived",
}


def as_object(first: Run, second: Run, differences: list[Difference]) -> dict[str, Any]:
    """For `--json`."""
    only_first, only_second = comparing.discordant(first, second)
    return {
        "first": first.name,
        "second": second.name,
        "num_pairs": len(comparing.paired_keys(first, second)),
        "num_unpaired": [
            len(set(first.rows) - set(second.rows)),
            len(set(second.rows) - set(first.rows)),
        ],
        "only_first": only_first,
        "only_second": only_second,
        "metrics": {
            row.metric: {**dataclasses.asdict(row), "difference": row.difference}
            for row in differences
        },
    }


def as_table(first: Run, second: Run, differences: list[Difference]) -> Table:
    """For people."""
    from rich.table import Table

    only_first, only_second = comparing.discordant(first, second)
    view = Table(
        title=f"A = {first.name}, B = {second.name}",
        caption=f"{report.counted(differences[0].num_pairs, 'episode')} in both; only A arrived in "
        f"{len(only_first)}, only B in {len(only_second)}\n"
        "p: McNemar's exact test for shares, paired bootstrap for means",
    )
    view.add_column("metric")
    for title in ("A", "B", "B - A", "95 % interval", "p"):
        view.add_column(title, justify="right")
    for row in differences:
        values = (f"{row.first:.3f}", f"{row.second:.3f}", f"{row.difference:+.3f}")
        view.add_row(
            NAMES[row.metric], *values, f"{row.low:+.3f} .. {row.high:+.3f}", f"{row.p:.4f}"
        )
    return view


def write_comparison(folder: Path, first: Run, second: Run, differences: list[Difference]) -> Path:
    """One page with both runs' numbers and, of reports, both paths and all decisions."""
    folder.mkdir(parents=True, exist_ok=True)
    only_first, only_second = comparing.discordant(first, second)
    keys = comparing.paired_keys(first, second)
    outcomes = {key: _outcome(first, second, key) for key in keys}
    counts = [(kind, sum(value == kind for value in outcomes.values())) for kind in OUTCOMES]
    context = {
        "first": first,
        "second": second,
        "num_pairs": len(keys),
        "num_unpaired": len(set(first.rows) ^ set(second.rows)),
        "differences": differences,
        "names": NAMES,
        "verdicts": {row.metric: _verdict(row) for row in differences},
        "num_discordant": (len(only_first), len(only_second)),
        "outcomes": OUTCOMES,
        "outcome_counts": counts,
        "episodes": _rows(first, second, outcomes),
        "runs": [f"A {first.name}", f"B {second.name}"],
        "has_plans": first.folder is not None and second.folder is not None,
        **page_constants(),
    }
    page, temporary = folder / PAGE_NAME, folder / f".{PAGE_NAME}.tmp"
    with temporary.open("wb") as file:
        environment().get_template("compare.html.jinja").stream(context).dump(file, "utf-8")
    temporary.replace(page)
    return page


def _outcome(first: Run, second: Run, key: str) -> str:
    one, two = bool(first.rows[key]["success"]), bool(second.rows[key]["success"])
    if one == two:
        return "both" if one else "neither"
    return "only_first" if one else "only_second"


def _verdict(row: Difference) -> str:
    """'gain', 'loss' or nothing, for the colour; chance is nothing."""
    if row.p >= 0.05 or row.difference == 0.0 or row.metric in NEITHER_IS_BETTER:
        return ""
    return "gain" if (row.difference < 0) == (row.metric in LESS_IS_BETTER) else "loss"


def _rows(first: Run, second: Run, outcomes: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Episodes that only one run solved come first."""
    drawn = (comparing.read_payloads(first), comparing.read_payloads(second))
    order = ["only_first", "only_second", "neither", "both"]
    for key in sorted(outcomes, key=lambda key: order.index(outcomes[key])):
        row, other = first.rows[key], second.rows[key]
        both = [payloads[key] for payloads in drawn if key in payloads]
        yield {
            "key": key,
            "outcome": outcomes[key],
            "instruction": both[0]["instruction"] if both else row.get("instruction", ""),
            "spl": row["spl"],
            "error_m": row["navigation_error_m"],
            "start_m": row["start_distance_m"],
            "num_decisions": row["num_decisions"],
            "num_collisions": row["num_collisions"],
            "extra": f"B: {other['num_decisions']} decisions, SPL {other['spl']:.2f}",
            "payload": safe_json(both if len(both) == 2 else []),
        }

# SPDX-License-Identifier: Apache-2.0
"""Command compare: two runs side by side, with tests of whether they differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nvila_ros.cli_options import JsonOption, print_json, writable_folder

app = typer.Typer()

RunArgument = Annotated[Path, typer.Argument(help="Folder of --report, or output of --json.")]


@app.command()
def compare(
    first: RunArgument,
    second: RunArgument,
    report: Annotated[Path | None, typer.Option(help="Folder for one HTML page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs over the same episodes: McNemar's exact test and the paired bootstrap."""
    from nvila_ros.evaluation import html_report_compare
    from nvila_ros.evaluation.compare import compare as run
    from nvila_ros.evaluation.compare import read_run

    if report is not None:
        writable_folder(report)
    runs = read_run(first), read_run(second)
    differences = run(*runs)
    if report is not None:
        page = html_report_compare.write_comparison(report, *runs, differences)
        sys.stderr.write(f"report: {page}\n")
    if as_json:
        print_json(html_report_compare.as_object(*runs, differences))
    else:
        from rich.console import Console

        Console().print(html_report_compare.as_table(*runs, differences))

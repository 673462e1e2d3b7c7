# SPDX-License-Identifier: Apache-2.0
"""Command doctor: is everything there, and what to do where it is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from nvila_ros.cli_options import NANO_FOLDER, JsonOption, ModelOption, print_json

app = typer.Typer()

MARKS = {"good": "[green]✓[/]", "note": "[yellow]•[/]", "bad": "[red]✗[/]", "left out": "[dim]–[/]"}


@app.command()
def doctor(
    model: ModelOption = NANO_FOLDER,
    image: Annotated[
        str, typer.Option("--image", "--image-topic", help="Camera topic to listen to.")
    ] = "image",
    seconds: Annotated[float, typer.Option(min=0.5, max=10.0, help="To listen for.")] = 3.0,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU is needed.")] = False,
    no_ros: Annotated[
        bool, typer.Option("--no-ros", help="Leave out ROS 2, discovery and camera.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder whose disk is looked at.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Check Python, GPU, ROS, discovery, camera, checkpoint and disk; say what to do."""
    from rich.console import Console

    from nvila_ros.doctor.examine import examine, exit_code
    from nvila_ros.doctor.findings import DoctorSettings

    settings = DoctorSettings(
        model=model,
        image_topic=image,
        camera_seconds=seconds,
        needs_ros=not no_ros,
        needs_gpu=gpu,
        output=output,
    )
    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            mark = MARKS[finding.verdict.value]
            console.print(f" {mark} {finding.name:<11}", end="")
            console.print(finding.found, markup=False)
            if finding.advice and finding.verdict.value != "good":
                console.print(f"     → {finding.advice}", markup=False)
    code = exit_code(findings)
    if as_json:
        rows = [{**dataclasses.asdict(item), "verdict": item.verdict.value} for item in findings]
        print_json({"healthy": code == 0, "findings": rows})
    raise typer.Exit(code)

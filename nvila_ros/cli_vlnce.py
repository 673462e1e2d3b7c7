# SPDX-License-Identifier: Apache-2.0
"""Command evaluate: R2R-CE and RxR-CE through a Habitat server."""

from __future__ import annotations

import enum
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nvila_ros.cli_options import (
    NANO_FOLDER,
    BackendName,
    BackendOption,
    DeviceOption,
    ModelOption,
    print_json,
    writable_folder,
)
from nvila_ros.errors import ConfigError

app = typer.Typer()


class Dataset(str, enum.Enum):
    """Which episodes."""

    r2r_ce = "r2r-ce"
    rxr_ce = "rxr-ce"


@app.command()
def evaluate(
    dataset: Annotated[Dataset, typer.Argument(help="r2r-ce or rxr-ce.")],
    data: Annotated[Path, typer.Option(help="Folder that holds <split>/<split>.json.gz.")],
    output: Annotated[Path, typer.Option("--output", "--out", help="One file per episode.")],
    split: Annotated[str, typer.Option(help="val_unseen, val_seen, ...")] = "val_unseen",
    model: ModelOption = NANO_FOLDER,
    device: DeviceOption = "auto",
    backend: BackendOption = BackendName.auto,
    endpoint: Annotated[
        str, typer.Option(help="Of habitat_server.py; worker n uses the port + n.")
    ] = "tcp://127.0.0.1:5555",
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a server.")] = 1,
    shard: Annotated[int, typer.Option(min=0, help="Which part this process drives.")] = 0,
    num_shards: Annotated[int, typer.Option(min=1, help="Of so many parts.")] = 1,
    report: Annotated[Path | None, typer.Option(help="Folder for one HTML page.")] = None,
) -> None:
    """Drive VLN-CE's episodes in discrete steps and write the papers' metrics; resumable."""
    from nvila_ros.evaluation.vlnce_episodes import load_vlnce
    from nvila_ros.evaluation.vlnce_run import write_summary

    episodes = load_vlnce(data, dataset.value.split("-")[0], split)
    for folder in (output, report):
        if folder is not None:
            writable_folder(folder)
    if workers > 1:
        _run_workers(endpoint, workers)
    else:
        from nvila_ros.evaluation.habitat_client import HabitatClient
        from nvila_ros.evaluation.vlnce_run import evaluate_shard
        from nvila_ros.policy import NavigationPolicy

        policy = NavigationPolicy.load(model, device, backend=backend.value)
        client = HabitatClient(endpoint)
        evaluate_shard(
            policy,
            client,
            episodes,
            output,
            shard,
            num_shards,
            lambda name, m: print(
                f"{name}: SR {m.sr:.0f} SPL {m.spl:.2f} NE {m.ne:.2f}", file=sys.stderr
            ),
        )
    summary = write_summary(episodes, output)
    if report is not None:
        from nvila_ros.evaluation.html_report_vlnce import write_vlnce_report
        from nvila_ros.models.runtime_backend import usable_device

        place = str(usable_device(device))
        facts = {"title": f"{dataset.value} {split}", "model": str(model), "device": place}
        sys.stderr.write(f"report: {write_vlnce_report(report, facts, episodes, output)}\n")
    print_json(_finite(summary))


def _run_workers(endpoint: str, workers: int) -> None:
    """This very command once per shard, each with its own server."""
    address, _, port = endpoint.rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"the endpoint is {endpoint!r}, expected a port at its end")
    arguments = sys.argv[1:]
    for name in ("--workers", "--endpoint", "--report"):
        arguments = [text for text in arguments if not text.startswith(f"{name}=")]
        while name in arguments:
            position = arguments.index(name)
            del arguments[position : position + 2]
    started = []
    for number in range(workers):
        own = ["--endpoint", f"{address}:{int(port) + number}"]
        own += ["--shard", str(number), "--num-shards", str(workers)]
        command = [sys.executable, "-m", "nvila_ros.cli", *arguments, *own]
        started.append(subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in started]
    if any(codes):
        raise ConfigError(f"workers ended with {codes}; run the same command again to go on")


def _finite(content: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither nan nor infinity: null."""
    made: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            made[key] = _finite(value)
        else:
            made[key] = None if isinstance(value, float) and not math.isfinite(value) else value
    return made

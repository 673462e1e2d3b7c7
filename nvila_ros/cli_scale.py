# SPDX-License-Identifier: Apache-2.0
"""What commands share that spread work over processes and machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvila_ros.evaluation.pool import EvaluationJob
    from nvila_ros.evaluation.rollout import Rollout
    from nvila_ros.evaluation.simulate import Evaluate
    from nvila_ros.training.scale import ScaleSettings

WorkersOption = Annotated[int, typer.Option(min=1, help="Processes on this machine.")]
RayOption = Annotated[
    str | None, typer.Option(help="Work on a Ray cluster: its address, or auto for this one's.")
]
GpusOption = Annotated[float, typer.Option(min=0.0, help="GPUs per process, on Ray.")]


def scale_settings(workers: int, ray: str | None, gpus: float = 0.0) -> ScaleSettings:
    """Where units are done."""
    from nvila_ros.training.scale import ScaleSettings

    return ScaleSettings(num_workers=workers, ray=ray, num_gpus=gpus)


def episode_evaluator(ray: str | None, gpus: float, folder: Path | None) -> Evaluate:
    """Episodes as units of work: on a cluster, or kept in a folder, or both."""
    from nvila_ros.evaluation.episode_units import EpisodeJob, evaluate_in_units
    from nvila_ros.training.scale import Unit, run_units

    def evaluate(
        job: EvaluationJob, num_workers: int, on_result: Callable[[Rollout], None]
    ) -> list[Rollout]:
        def run(
            units_job: EpisodeJob,
            names: list[tuple[str, int]],
            target: Path,
            on_unit: Callable[[str], None],
        ) -> None:
            units = [Unit(name, position) for name, position in names]
            settings = scale_settings(num_workers, ray, gpus)
            run_units(units_job, units, target, settings, lambda unit, _: on_unit(unit.name))

        return evaluate_in_units(job, run, on_result, folder)

    return evaluate


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)

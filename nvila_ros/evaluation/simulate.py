# SPDX-License-Identifier: Apache-2.0
"""The `simulate` command: runs episodes with a progress bar, then prints table or object."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nvila_ros import __version__
from nvila_ros.evaluation import report
from nvila_ros.evaluation.pool import EvaluationJob, evaluate, usable_workers
from nvila_ros.evaluation.rollout import Rollout

# (job, number of workers, what hears of each rollout) -> the rollouts in the order of the seeds
Evaluate = Callable[[EvaluationJob, int, Callable[[Rollout], None]], list[Rollout]]


def simulate(
    job: EvaluationJob,
    *,
    num_workers: int | None,
    as_json: bool,
    plans: Path | None = None,
    report_folder: Path | None = None,
    evaluator: Evaluate = evaluate,
) -> dict[str, Any]:
    """Runs a job; progress goes to stderr, the result to stdout."""
    begin_s = time.perf_counter()
    workers = usable_workers(num_workers, len(job.seeds))
    rollouts = _with_progress(job, workers, evaluator)
    result = {
        "policy": job.driver,
        "model": str(job.model_path) if job.model_path else None,
        "control": job.control,
        "mirrored": job.mirrors,
        "asking": job.asks,
        "seeds": [job.seeds[0], job.seeds[-1] + 1],
        **report.summarise([rollout.metrics for rollout in rollouts]),
        **_decision_speed(rollouts),
        "wall_s": time.perf_counter() - begin_s,
        "num_workers": workers,
        "success_radius_m": job.config.success_radius_m,
        "max_decisions": job.config.max_decisions,
        "version": __version__,
        "episodes": [_row(rollout) for rollout in rollouts],
    }
    if plans is not None:
        _save_plans(rollouts, plans)
    if report_folder is not None:
        from nvila_ros.evaluation.html_report import write_rollout_report

        page = write_rollout_report(report_folder, result, rollouts)
        sys.stderr.write(f"report: {page}\n")
    if as_json:
        json.dump(result, sys.stdout, allow_nan=False)
        sys.stdout.write("\n")
    else:
        Console().print(report.table(result, title(job)))
    return result


def title(job: EvaluationJob) -> str:
    """What was run, for the head of the table: who drove, which seeds, under which control."""
    who: str = job.driver
    if job.model_path is not None:
        path = job.model_path.absolute()
        who = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    first, last = job.seeds[0], job.seeds[-1]
    words = [who, f"seed {first}" if first == last else f"seeds {first}:{last + 1}"]
    words += [] if job.control == "none" else [f"{job.control} control"]
    words += ["also in the mirror"] if job.mirrors else []
    words += ["asking before it stops"] if job.asks else []
    return ", ".join(words)


def _with_progress(job: EvaluationJob, workers: int, evaluator: Evaluate) -> list[Rollout]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    successes, done = 0, 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("episodes", total=len(job.seeds))

        def on_result(rollout: Rollout) -> None:
            nonlocal successes, done
            successes, done = successes + rollout.metrics.success, done + 1
            progress.update(task, advance=1, description=f"success {successes / done:.0%}")

        return evaluator(job, workers, on_result)


def _decision_speed(rollouts: list[Rollout]) -> dict[str, Any]:
    """Latencies of this run; other processes share the cores, so test/bench measures better."""
    latencies_s = np.concatenate([rollout.latencies_s for rollout in rollouts])
    p50_s, p95_s = np.percentile(latencies_s, [50, 95])
    return {"decision_latency_p50_s": float(p50_s), "decision_latency_p95_s": float(p95_s)}


def _row(rollout: Rollout) -> dict[str, Any]:
    return report.episode_row(
        rollout.metrics,
        instruction=rollout.instruction,
        actions=list(rollout.actions),
        mean_confidence=float(np.mean(rollout.confidences)),
        mean_latency_s=float(np.mean(rollout.latencies_s)),
    )


def _save_plans(rollouts: list[Rollout], folder: Path) -> None:
    from nvila_ros.evaluation.floor_plan import draw_floor_plan

    folder.mkdir(parents=True, exist_ok=True)
    for rollout in rollouts:
        outcome = report.failure_kind(rollout.metrics) or "success"
        plan = draw_floor_plan(rollout.episode, rollout.poses, rollout.instruction)
        plan.save(folder / f"{outcome}_{rollout.episode.seed}.png")

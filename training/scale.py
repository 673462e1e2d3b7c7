# SPDX-License-Identifier: Apache-2.0
"""Work cut into units that any process, on any machine, may do: none is lost, none counts twice.

A unit is a name and what to do; what it makes is one set of files that the driver writes, each
under a temporary name and then renamed, the one that proves the unit done last. A unit whose proof
is there is not done again: a run that was stopped, or whose machine died, goes on. Doing a unit
twice makes the same files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nvila_ros.errors import ConfigError, NvilaError

JOB_NAME = "job.json"
PENDING_PER_WORKER = 2  # submitted ahead: enough to keep a worker busy, little to redo


@dataclass(frozen=True)
class Unit:
    """One piece of work; `name` becomes part of file names."""

    name: str
    content: Any  # picklable: a range, a seed, an address


class Worker(Protocol):
    """Does units; made once per process, where models are loaded."""

    def __call__(self, unit: Unit) -> dict[str, bytes]:
        """File names and contents; the last one proves that the unit is done."""


class Job(Protocol):
    """What all units have in common; picklable and hashable, sent to every process."""

    def proof(self, unit: Unit) -> str:
        """Name of the file that proves the unit done."""

    def worker(self) -> Worker:
        """Loads what units need."""

    def describe(self) -> dict[str, Any]:
        """What must be equal for a stopped run to go on, as what json can hold."""


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """Where units are done."""

    num_workers: int = 1  # processes on this machine, without Ray
    ray: str | None = None  # 'auto' or an address: on a Ray cluster
    num_cpus: float = 1.0  # of Ray, per unit
    num_gpus: float = 0.0


def run_units(
    job: Job,
    units: Sequence[Unit],
    folder: Path,
    settings: ScaleSettings | None = None,
    on_done: Callable[[Unit, bool], None] = lambda unit, was_there: None,
) -> int:
    """Does what is not done yet and returns how many units that was.

    `on_done` hears of every unit, also of those that were there. The first unit that fails for
    another reason than a dead process ends the run, with its name.
    """
    settings = settings or ScaleSettings()
    names = [unit.name for unit in units]
    if len(set(names)) != len(names):
        raise ConfigError("two units of work have one name; names must differ")
    folder.mkdir(parents=True, exist_ok=True)
    _same_job(job, folder)
    missing = []
    for unit in units:
        if (folder / job.proof(unit)).exists():
            on_done(unit, True)
        else:
            missing.append(unit)
    for unit, files in _results(job, missing, settings):
        if next(reversed(files)) != job.proof(unit):
            raise AssertionError(f"the files of {unit.name} do not end with their proof")
        for name, content in files.items():
            write_atomically(folder / name, content)
        on_done(unit, False)
    return len(missing)


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or none of it, whenever the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise NvilaError(
            f"{path} cannot be written ({error.strerror}); make room and start the command again, "
            "it goes on where it stopped"
        ) from None


def _same_job(job: Job, folder: Path) -> None:
    """Writes what the folder is for, or refuses a folder that is for something else."""
    path = folder / JOB_NAME
    described = json.loads(json.dumps(job.describe()))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before != described:
            raise ConfigError(
                f"{folder} was begun with other settings ({before}), now they are {described}; "
                "give another folder or the same settings"
            )
        return
    write_atomically(path, (json.dumps(described, indent=1) + "\n").encode())


def _results(
    job: Job, units: list[Unit], settings: ScaleSettings
) -> Iterator[tuple[Unit, dict[str, bytes]]]:
    if not units:
        return iter(())
    if settings.ray is not None:
        from nvila_ros.training.scale_ray import ray_results

        return ray_results(job, units, settings)
    if settings.num_workers <= 1 or len(units) == 1:
        return ((unit, _do(job, unit)) for unit in units)
    return _in_processes(job, units, min(settings.num_workers, len(units)))


def _in_processes(
    job: Job, units: list[Unit], num_workers: int
) -> Iterator[tuple[Unit, dict[str, bytes]]]:
    """On this machine; a few units are submitted ahead of those that are under way."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by each worker when it imports torch and numpy
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa draws in the calling thread
    context = multiprocessing.get_context("spawn")  # a forked OpenGL context hangs
    waiting = list(reversed(units))
    with ProcessPoolExecutor(num_workers, context) as pool:
        pending: dict[Future, Unit] = {}
        try:
            while waiting or pending:
                while waiting and len(pending) < num_workers * PENDING_PER_WORKER:
                    unit = waiting.pop()
                    pending[pool.submit(_do, job, unit)] = unit
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield pending.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker_of_job: dict[Job, Worker] = {}


def _do(job: Job, unit: Unit) -> dict[str, bytes]:
    """One unit in this process; the job's worker is made for the first one."""
    if job not in _worker_of_job:
        _worker_of_job.clear()
        _worker_of_job[job] = job.worker()
    try:
        return _worker_of_job[job](unit)
    except NvilaError as error:
        raise type(error)(f"unit {unit.name}: {error}") from None

# SPDX-License-Identifier: Apache-2.0
"""Worker pool: many episodes at once, each process with its own model, world and single thread."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import ConfigError
from nvila_ros.evaluation.drivers import Driver, ModelDriver, OracleDriver
from nvila_ros.evaluation.rollout import CONTROLS, Control, Rollout, run_episode
from nvila_ros.sim.episodes import episode_from_seed


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """Who drives which episodes under which control; sent to every worker process."""

    seeds: tuple[int, ...]
    driver: Literal["model", "oracle"] = "model"
    model_path: Path | None = None
    device: str = "cpu"
    backend: str = "auto"
    vision_backend: str = "auto"
    control: Control = "none"
    mirrors: bool = False  # the model also decides in the mirror, see mirrored_policy.py
    asks: bool = False  # the model asks itself before it stops, see asking_policy.py
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    keeps_frames: bool = False  # small pictures of what each decision saw, for reports

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ConfigError("there are no seeds to run; give a range such as 900000:900200")
        if self.control not in CONTROLS:
            raise ConfigError(f"control is {self.control!r}, expected one of {', '.join(CONTROLS)}")
        if self.driver == "model" and self.model_path is None:
            raise ConfigError("the model driver needs the path of a checkpoint folder")
        if self.mirrors and self.driver != "model":
            raise ConfigError("only a model decides in the mirror; leave --mirror out")
        if self.asks and (self.driver != "model" or self.mirrors):
            raise ConfigError("only a model without --mirror asks before it stops; leave --ask out")

    def borrowed_seed(self, position: int) -> int:
        """The episode whose instruction the deaf control gives to this one."""
        if len(self.seeds) == 1:
            return self.seeds[0] + 1
        return self.seeds[(position + 1) % len(self.seeds)]


def evaluate(
    job: EvaluationJob,
    num_workers: int,
    on_result: Callable[[Rollout], None] = lambda rollout: None,
) -> list[Rollout]:
    """Runs all episodes, returns them in the order of the seeds; the first error ends the run."""
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa draws in the calling thread
    positions = range(len(job.seeds))
    if num_workers <= 1:
        return [_reported(run_position(job, position), on_result) for position in positions]
    context = multiprocessing.get_context("spawn")  # a forked OpenGL context or thread pool hangs
    results: dict[int, Rollout] = {}
    os.environ["OMP_NUM_THREADS"] = "1"  # read by each worker when it imports torch and numpy
    with ProcessPoolExecutor(num_workers, context, initializer=end_with_parent) as pool:
        pending = {pool.submit(run_position, job, position): position for position in positions}
        try:
            for future in as_completed(pending):
                results[pending[future]] = _reported(future.result(), on_result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[position] for position in positions]


def usable_workers(requested: int | None, num_episodes: int) -> int:
    """As many processes as cores unless asked otherwise, never more than episodes."""
    return max(1, min(requested or len(os.sched_getaffinity(0)), num_episodes))


def end_with_parent() -> None:
    """In a worker: ends it when the parent dies; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a parent to watch"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


_driver_of_job: dict[EvaluationJob, Driver] = {}


def run_position(job: EvaluationJob, position: int) -> Rollout:
    """One episode in this process; the model is loaded for the first one."""
    if job not in _driver_of_job:
        _driver_of_job.clear()
        _driver_of_job[job] = _make_driver(job)
    instruction = None
    if job.control == "deaf":
        instruction = episode_from_seed(job.borrowed_seed(position)).instruction
    return run_episode(
        episode_from_seed(job.seeds[position]),
        _driver_of_job[job],
        job.config,
        blind=job.control == "blind",
        instruction=instruction,
        keeps_frames=job.keeps_frames,
    )


def _make_driver(job: EvaluationJob) -> Driver:
    if job.driver == "oracle":
        return OracleDriver()
    from nvila_ros.policy import NavigationPolicy

    assert job.model_path is not None  # checked when the job was made
    load = functools.partial(
        NavigationPolicy.load,
        job.model_path,
        job.device,
        backend=job.backend,
        vision_backend=job.vision_backend,
    )
    policy = load()
    if job.asks:
        from nvila_ros.asking_policy import AskingPolicy

        return ModelDriver(AskingPolicy(policy))
    if not job.mirrors:
        return ModelDriver(policy)
    from nvila_ros.mirrored_policy import MirroredPolicy

    return ModelDriver(MirroredPolicy(policy, load()))


def _reported(rollout: Rollout, on_result: Callable[[Rollout], None]) -> Rollout:
    on_result(rollout)
    return rollout

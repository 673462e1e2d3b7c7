# SPDX-License-Identifier: Apache-2.0
"""Episodes as units of work for many machines: each is driven once and kept as a file."""

from __future__ import annotations

import base64
import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import SceneError
from nvila_ros.evaluation.metrics import EpisodeMetrics
from nvila_ros.evaluation.pool import EvaluationJob, run_position
from nvila_ros.evaluation.rollout import Rollout
from nvila_ros.sim.episodes import Episode

SUFFIX = ".rollout.json"
# (job, units' (name, position) pairs, folder, what hears of each unit): does what is missing
RunUnits = Callable[["EpisodeJob", list[tuple[str, int]], Path, Callable[[str], None]], None]


@dataclass(frozen=True)
class EpisodeJob:
    """A job whose units are positions in the list of seeds; see `training/scale.py`."""

    job: EvaluationJob

    def proof(self, unit: Any) -> str:
        """The file of one episode."""
        return f"{unit.name}{SUFFIX}"

    def worker(self) -> Callable[[Any], dict[str, bytes]]:
        """Drives one episode; the model is loaded for the first one."""
        return lambda unit: {
            self.proof(unit): json.dumps(to_json(run_position(self.job, unit.content))).encode()
        }

    def describe(self) -> dict[str, Any]:
        """Everything but the device and the backend."""
        job = self.job
        return {
            "what": "evaluation",
            "seeds": list(job.seeds),
            "driver": job.driver,
            "model": None if job.model_path is None else str(job.model_path),
            "control": job.control,
            "mirrors": job.mirrors,
            "asks": job.asks,
            "config": dataclasses.asdict(job.config),
        }


def evaluate_in_units(
    job: EvaluationJob,
    run: RunUnits,
    on_result: Callable[[Rollout], None] = lambda rollout: None,
    folder: Path | None = None,
) -> list[Rollout]:
    """All episodes in the order of the seeds; those whose files are in `folder` are not redone."""
    names = [(f"{position:06d}-{seed}", position) for position, seed in enumerate(job.seeds)]
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) if folder is None else folder
        found: dict[str, Rollout] = {}

        def on_unit(name: str) -> None:
            found[name] = read_rollout(target / f"{name}{SUFFIX}")
            on_result(found[name])

        run(EpisodeJob(job), names, target, on_unit)
        return [found[name] for name, _ in names]


def to_json(rollout: Rollout) -> dict[str, Any]:
    """Plain numbers and strings."""
    return {
        "episode": rollout.episode.to_json(),
        "instruction": rollout.instruction,
        "metrics": dataclasses.asdict(rollout.metrics),
        "poses": rollout.poses.tolist(),
        "actions": list(rollout.actions),
        "confidences": list(rollout.confidences),
        "latencies_s": list(rollout.latencies_s),
        "places": list(rollout.places),
        "probabilities": [list(row) for row in rollout.probabilities],
        "frames": [base64.b64encode(frame).decode() for frame in rollout.frames],
    }


def read_rollout(path: Path) -> Rollout:
    """What `to_json` wrote; SceneError on anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Rollout(
            episode=Episode.from_json(content["episode"]),
            instruction=content["instruction"],
            metrics=EpisodeMetrics(**content["metrics"]),
            poses=np.asarray(content["poses"], dtype=np.float64),
            actions=tuple(content["actions"]),
            confidences=tuple(content["confidences"]),
            latencies_s=tuple(content["latencies_s"]),
            places=tuple(content.get("places", ())),  # files of before have none of these
            probabilities=tuple(map(tuple, content.get("probabilities", ()))),
            frames=tuple(base64.b64decode(frame) for frame in content.get("frames", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, SceneError) as error:
        raise SceneError(f"{path} is no rollout ({error!r}); remove it and run again") from None

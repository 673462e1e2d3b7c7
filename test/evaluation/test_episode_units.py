# SPDX-License-Identifier: Apache-2.0
"""Episodes that are kept as files: the same rollouts, driven once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.cli_scale import episode_evaluator
from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import ConfigError, SceneError
from nvila_ros.evaluation.episode_units import read_rollout
from nvila_ros.evaluation.pool import EvaluationJob, evaluate
from nvila_ros.evaluation.rollout import Rollout

JOB = EvaluationJob(
    seeds=(900_000, 900_001), driver="oracle", config=EvaluationConfig(max_decisions=60)
)


def same(first: Rollout, second: Rollout) -> bool:
    """All but the times that deciding took."""
    fields = {field.name for field in dataclasses.fields(Rollout)} - {"latencies_s", "poses"}
    return np.array_equal(first.poses, second.poses) and all(
        getattr(first, name) == getattr(second, name) for name in fields
    )


def test_kept_episodes_are_the_same_and_not_driven_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(JOB, 1)
    heard: list[int] = []
    run = episode_evaluator(None, 0.0, tmp_path)
    found = run(JOB, 1, lambda rollout: heard.append(rollout.metrics.seed))
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert heard == list(JOB.seeds)

    def drive(*_: object) -> None:
        raise AssertionError("it was driven already")

    monkeypatch.setattr("nvila_ros.evaluation.episode_units.run_position", drive)
    again = run(JOB, 1, lambda rollout: None)
    assert all(same(a, b) for a, b in zip(again, expected, strict=True))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run = episode_evaluator(None, 0.0, tmp_path)
    one = dataclasses.replace(JOB, seeds=(900_000,))
    run(one, 1, lambda rollout: None)
    with pytest.raises(ConfigError, match="other settings"):
        run(dataclasses.replace(one, control="deaf"), 1, lambda rollout: None)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.rollout.json").write_text('{"episode": {}}')
    with pytest.raises(SceneError, match=r"a\.rollout\.json"):
        read_rollout(tmp_path / "a.rollout.json")

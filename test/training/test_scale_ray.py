# SPDX-License-Identifier: Apache-2.0
"""Units of work on two Ray nodes, of which one dies in the middle."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scale_units
from scale_units import SMALL, UNITS, Squares, files_of

from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.evaluation.pool import EvaluationJob, evaluate
from nvila_ros.models import weights
from nvila_ros.models.config import nano_config
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.data.generate import GenerateJob, generate
from nvila_ros.training.data.mixture import SourceConfig, open_source
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.data.shard_writing import write_shards
from nvila_ros.training.data.stream import Part
from nvila_ros.training.delta_loss import ScoreJob
from nvila_ros.training.delta_loss_prune import read_scores
from nvila_ros.training.delta_loss_report import score_units
from nvila_ros.training.scale import ScaleSettings, Unit, run_units
from nvila_ros.training.vocabulary import build_tokenizer


class Cluster:
    """Two Ray nodes of one core each on this machine; `kill` takes the second away at once."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster as LocalCluster

        options = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        self.cluster = LocalCluster(
            initialize_head=True, head_node_args={**options, "include_dashboard": False}
        )
        self.second = self.cluster.add_node(**options)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        self.address = self.cluster.address
        self.second_id = self.second.node_id

    def kill(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    cluster = Cluster()
    yield cluster
    cluster.close()


class KillsAfter:
    """Hears of units; after the n-th one the second node dies."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self.cluster, self.count = cluster, count
        self.names: list[str] = []

    def __call__(self, unit: Unit, was_there: bool) -> None:
        self.names.append(unit.name)
        if len(self.names) == self.count:
            self.cluster.kill()


@dataclass(frozen=True)
class SlowSquares(Squares):
    """Leaves a note of where it works, works for a while, and leaves another."""

    notes: str = ""

    def square(self, unit: Unit) -> dict[str, bytes]:
        import ray

        note = Path(self.notes) / f"{ray.get_runtime_context().get_node_id()}.{unit.name}"
        note.touch()
        time.sleep(1.0)
        files = super().square(unit)
        note.with_suffix(note.suffix + ".done").touch()
        return files


@pytest.mark.slow
def test_a_unit_under_way_on_a_node_that_dies_is_done_again(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    for module in (sys.modules[__name__], scale_units):  # Ray's processes cannot import tests
        ray.cloudpickle.register_pickle_by_value(module)
    notes = tmp_path / "notes"
    notes.mkdir()
    units = [Unit(f"u{number}", number) for number in range(14)]
    heard: list[str] = []
    lost: list[str] = []

    def on_done(unit: Unit, was_there: bool) -> None:
        heard.append(unit.name)
        deadline_s = time.monotonic() + 60.0
        while len(heard) == 1 and not lost and time.monotonic() < deadline_s:
            begun = {note.name for note in notes.glob(f"{cluster.second_id}.u*")}
            lost.extend(
                name for name in begun if ".done" not in name and f"{name}.done" not in begun
            )
            if lost:
                cluster.kill()
            time.sleep(0.02)

    done = run_units(
        SlowSquares(notes=str(notes)),
        units,
        tmp_path / "out",
        ScaleSettings(ray=cluster.address),
        on_done,
    )
    assert done == 14 and sorted(heard) == sorted(unit.name for unit in units)
    assert len(lost) == 1
    assert f"unit {lost[0].split('.')[1]} died" in caplog.text
    values = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.txt")}
    assert values == {f"u{number}.txt": str(number**2) for number in range(14)}


@pytest.mark.slow
def test_generation_survives_a_node_that_dies(cluster: Cluster, tmp_path: Path) -> None:
    job = GenerateJob(seeds=tuple(range(100, 112)), seeds_per_unit=1, options=SMALL)
    expected = generate(job, tmp_path / "one")
    heard = KillsAfter(cluster, 3)
    found = generate(job, tmp_path / "ray", ScaleSettings(ray=cluster.address), heard)
    assert found == expected and len(set(heard.names)) == len(heard.names) == 12
    assert files_of(tmp_path / "one") == files_of(tmp_path / "ray")
    source = open_source(SourceConfig(name="a", path=str(tmp_path / "ray")))
    keys = [item.key for item in source.open(Part(), 0, epochs=1)]  # type: ignore[union-attr]
    assert len(keys) == len(set(keys)) == expected["num_samples"]


@pytest.mark.slow
def test_scoring_survives_a_node_that_dies(cluster: Cluster, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    config = nano_config(tokenizer.vocab_size)
    for name, seed in (("large", 1), ("small", 2)):
        model = Nvila.from_scratch(config, seed=seed, std=0.1)
        weights.save(tmp_path / name, model, tokenizer)
    rng = np.random.default_rng(0)
    rows = [
        Sample(
            key=str(number),
            source="views",
            kind="image",
            frames=(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),),
            turns=(Turn(user="<image>\nWhere is it?", answer="It is ahead."),),
        )
        for number in range(60)
    ]
    write_shards(rows, tmp_path / "data", max_samples=5)
    source = SourceConfig(name="views", path=str(tmp_path / "data"))
    job = ScoreJob(sources=(source,), large=str(tmp_path / "large"), small=str(tmp_path / "small"))
    units = score_units([source], 100)
    heard = KillsAfter(cluster, 2)
    run_units(job, units, tmp_path / "ray", ScaleSettings(ray=cluster.address), heard)
    run_units(job, units, tmp_path / "one")
    lines = [
        json.loads(line)["key"]
        for path in (tmp_path / "ray").glob("*.scores.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(lines, key=int) == [str(number) for number in range(60)]
    one, ray = (
        {score.key: score.delta_sum for score in read_scores(tmp_path / name).good}
        for name in ("one", "ray")
    )
    assert ray.keys() == one.keys()
    assert all(ray[key] == pytest.approx(one[key], abs=1e-4) for key in one)


@pytest.mark.slow
def test_closed_loop_evaluation_survives_a_node_that_dies(cluster: Cluster) -> None:
    from nvila_ros.cli_scale import episode_evaluator

    job = EvaluationJob(
        seeds=tuple(range(900_000, 900_010)),
        driver="oracle",
        config=EvaluationConfig(max_decisions=60),
    )
    expected = evaluate(job, 1)
    seen = []

    def on_result(rollout: Any) -> None:
        seen.append(rollout.metrics.seed)
        if len(seen) == 2:
            cluster.kill()

    found = episode_evaluator(cluster.address, 0.0, None)(job, 1, on_result)
    assert sorted(seen) == list(job.seeds)
    assert [rollout.metrics for rollout in found] == [rollout.metrics for rollout in expected]
    assert all(np.array_equal(a.poses, b.poses) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_a_failing_unit_ends_a_run_on_ray_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    job = ScoreJob(sources=(), large=str(tmp_path / "absent"), small=str(tmp_path / "absent"))
    unit = Unit("u", ("views", Unit("inner", 0)))
    with pytest.raises(NvilaError, match="absent"):
        run_units(job, [unit], tmp_path / "out", ScaleSettings(ray=cluster.address))


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1", "nonsense"])
def test_an_address_without_a_cluster_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, also where a cluster that died left its address behind."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="ray start --head"):
        run_units(Squares(), UNITS, tmp_path, ScaleSettings(ray=address))

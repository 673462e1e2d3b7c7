# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.models import weights
from nvila_ros.models.config import nano_config
from nvila_ros.models.inputs import prepare
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.data.mixture import SourceConfig, open_source
from nvila_ros.training.data.sample import FrameBytes, Sample, Turn
from nvila_ros.training.data.shard_writing import write_shards
from nvila_ros.training.data.stream import Part
from nvila_ros.training.delta_loss import SCORES_SUFFIX, ScoreJob, score
from nvila_ros.training.delta_loss_prune import (
    Score,
    Scores,
    at_random,
    by_cluster,
    by_delta,
    prune,
    quota,
    read_scores,
)
from nvila_ros.training.delta_loss_report import examples, score_units, write_report
from nvila_ros.training.scale import run_units
from nvila_ros.training.vocabulary import build_tokenizer

TOKENIZER = build_tokenizer()
CONFIG = nano_config(TOKENIZER.vocab_size)
END = TOKENIZER.id("<|im_end|>")


def network(seed: int, std: float = 0.02) -> Nvila:
    model = Nvila.from_scratch(CONFIG, seed=seed, std=std)
    model.connect(TOKENIZER.media_ids, TOKENIZER.newline_ids)
    return model.eval()


def sample(number: int, source: str = "views", answer: str = "It is ahead.") -> Sample:
    rng = np.random.default_rng(number)
    picture = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    turns = (Turn(user="<image>\nWhere is it?", answer=answer),)
    return Sample(key=f"{number}", source=source, kind="image", frames=(picture,) * 1, turns=turns)


def teacher_forced(model: Nvila, row: Sample) -> float:
    """The answer's log probability, one sample alone, through the code of inference."""
    fused = prepare(model, TOKENIZER, row.turns[0].user, list(row.frames))  # type: ignore[arg-type]
    answer = [*TOKENIZER.encode(row.turns[0].answer), END]
    with torch.no_grad():
        embeds = torch.cat([model.embed(fused.input_ids, fused.media), model.embed_text(answer)])
        scores = model.logits(model(embeds.unsqueeze(0))[0]).log_softmax(-1)
    start = len(embeds) - len(answer) - 1
    return sum(float(scores[start + place, token]) for place, token in enumerate(answer))


def test_delta_is_the_difference_of_the_answers_log_probabilities() -> None:
    large, small = network(1, 0.1), network(2, 0.1)
    answers = ["It is ahead.", "It is 30 degrees left, two meters.", "left"]
    samples = [sample(n, answer=answers[n % 3]) for n in range(7)]
    rows = score(samples, {"large": (large, TOKENIZER), "small": (small, TOKENIZER)})
    for row, one in zip(rows, samples, strict=True):
        expected = teacher_forced(large, one) - teacher_forced(small, one)
        count = len(TOKENIZER.encode(one.turns[0].answer)) + 1
        assert row["delta_sum"] == pytest.approx(expected, abs=2e-3)
        assert row["delta_mean"] == pytest.approx(expected / count, abs=1e-3)
        assert row["tokens_large"] == row["tokens_small"] == count
        assert row["key"] == one.key and len(row["feature"]) > 100


def test_what_the_large_model_learned_is_helpful_and_what_the_small_one_did_distracts() -> None:
    """Two equal networks, each taught one answer: Delta tells whose it is."""
    models = []
    for answer in ("It is 45 degrees left.", "This is the kitchen."):
        model = network(3)
        ids = torch.tensor([*TOKENIZER.encode(answer), END])
        optimizer = torch.optim.SGD(model.llm.parameters(), lr=0.5)
        embeds = model.embed_text(TOKENIZER.encode("Where is it?")).detach().unsqueeze(0)
        for _ in range(5):
            logits = model.logits(model(embeds)[0, -1:]).log_softmax(-1)
            loss = -logits[0, ids].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append((model.eval(), TOKENIZER))
    samples = [
        sample(0, answer="It is 45 degrees left."),
        sample(1, answer="This is the kitchen."),
    ]
    rows = score(samples, {"large": models[0], "small": models[1]})
    assert rows[0]["delta_sum"] > 0.1 and rows[1]["delta_sum"] < -0.1


def test_a_broken_sample_is_a_row_with_its_reason() -> None:
    model = (network(1), TOKENIZER)
    bad = Sample(
        key="bad",
        source="views",
        kind="image",
        frames=(FrameBytes(b"", "x.jpg"),),
        turns=(Turn(user="<image>a", answer="b"),),
    )
    rows = score([sample(0), bad], {"large": model, "small": model})
    assert rows[0]["delta_sum"] == 0.0
    assert set(rows[1]) == {"key", "source", "broken"} and "x.jpg" in rows[1]["broken"]


def made_up(count: int, source: str = "a", seed: int = 0) -> list[Score]:
    rng = np.random.default_rng(seed)
    return [
        Score(
            key=f"{n:03d}",
            source=source,
            delta_sum=float(rng.normal()),
            delta_mean=float(rng.normal()),
            mean_large=float(-rng.random()),
            unit="u",
            feature=rng.normal(size=4).astype(np.float32) + (10 if n % 4 == 0 else -10),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "count, keep, expected", [(10, 0.5, 5), (11, 0.5, 6), (30, 0.1, 3), (10, 0.3, 3), (3, 0.01, 1)]
)
def test_the_quota_is_the_papers_ceiling(count: int, keep: float, expected: int) -> None:
    assert quota(count, keep) == expected


@pytest.mark.parametrize("keep", [0.0, 1.5, -1.0])
def test_an_impossible_share_is_refused(keep: float) -> None:
    with pytest.raises(ConfigError, match="share above 0"):
        quota(10, keep)


def test_the_largest_are_kept_by_sum_or_by_mean() -> None:
    scores = made_up(20)
    for by in ("sum", "mean"):
        kept = {score.key for score in by_delta(scores, 0.5, by)}  # type: ignore[arg-type]
        values = sorted((score.delta(by) for score in scores), reverse=True)  # type: ignore[arg-type]
        assert len(kept) == 10
        assert kept == {s.key for s in scores if s.delta(by) >= values[9]}  # type: ignore[arg-type]


def test_baselines_keep_as_many_and_clusters_are_drawn_from_evenly() -> None:
    scores = made_up(40)
    assert len({s.key for s in at_random(scores, 0.5, 1)}) == 20
    assert at_random(scores, 0.5, 1) == at_random(scores, 0.5, 1) != at_random(scores, 0.5, 2)
    kept = by_cluster(scores, 0.5, 2, 0)
    assert len({s.key for s in kept}) == 20
    near = sum(int(s.key) % 4 == 0 for s in kept)
    assert near == 10  # all ten of the small cluster, ten of the thirty others


def test_pruning_works_per_subset_and_writes_selections(tmp_path: Path) -> None:
    low = [Score(f"l{n}", "low", n - 100.0, n - 100.0, -1.0, "u") for n in range(4)]
    scores = Scores([*made_up(9), *low], 2)
    report = prune(scores, tmp_path, keep=0.5, by="sum", num_clusters=3)
    selected = json.loads((tmp_path / "delta.json").read_text())["selected"]
    assert len(selected["a"]) == 5 and selected["low"] == ["l2", "l3"]
    assert set(report["methods"]) == {"delta", "random_0", "random_1", "random_2", "cluster"}
    assert all(own["num_kept"] == 7 for own in report["methods"].values())
    assert report["methods"]["delta"]["mean_delta"] > report["methods"]["random_0"]["mean_delta"]


def test_examples_stand_for_one_kind_each() -> None:
    found = examples(made_up(30), "sum", 5)
    keys = [score.key for kind in found.values() for score in kind]
    assert len(keys) == len(set(keys)) == 15
    assert max(abs(s.delta_sum) for s in found["easy"]) < min(s.delta_sum for s in found["helpful"])


def test_from_shards_to_a_pruned_mixture(tmp_path: Path) -> None:
    """Score, stop in the middle, go on, prune, report, read only what was kept."""
    rows = [sample(n, "even" if n % 2 == 0 else "odd") for n in range(24)]
    write_shards(rows, tmp_path / "data", max_samples=6)
    for name, seed in (("large", 1), ("small", 2)):
        weights.save(tmp_path / name, network(seed, 0.1), TOKENIZER)
    source = SourceConfig(name="all", path=str(tmp_path / "data"))
    job = ScoreJob(sources=(source,), large=str(tmp_path / "large"), small=str(tmp_path / "small"))
    units = score_units([source], 100)
    assert len(units) == 4
    run_units(job, units[:2], tmp_path / "scores")
    (tmp_path / "scores" / f".{units[2].name}.tmp").write_text("half a file")
    assert run_units(job, units, tmp_path / "scores") == 2
    assert run_units(job, units, tmp_path / "scores") == 0
    scores = read_scores(tmp_path / "scores")
    assert len(scores.good) == 24 and sorted(scores.subsets()) == ["even", "odd"]
    summary = prune(scores, tmp_path / "pruned", keep=0.25)
    write_report(scores, summary, [source], 100, tmp_path / "pruned" / "report.html")
    page = (tmp_path / "pruned" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8 and "http" not in page
    pruned = open_source(
        SourceConfig(name="all", path=source.path, select=str(tmp_path / "pruned" / "delta.json"))
    )
    kept = list(pruned.open(Part(), 0, epochs=1))
    assert len(kept) == 6 and sum(item.source == "even" for item in kept) == 3


def test_a_folder_of_other_models_is_refused(tmp_path: Path) -> None:
    job = ScoreJob(sources=(), large="a", small="b")
    run_units(job, [], tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        run_units(ScoreJob(sources=(), large="a", small="c"), [], tmp_path)


def test_malformed_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scores"):
        read_scores(tmp_path)
    (tmp_path / f"a{SCORES_SUFFIX}").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="line 1 is malformed"):
        read_scores(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""The simulator as a data source: samples of every stage, true, encodable and resumable."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.errors import ConfigError
from nvila_ros.sim.motion import wrap
from nvila_ros.training import simulator_drives as drives
from nvila_ros.training.data.encoding import IGNORED, encode
from nvila_ros.training.data.stream import Part
from nvila_ros.training.simulator_source import (
    STAGES,
    SimulatorOptions,
    open_simulator,
    scene_samples,
)
from nvila_ros.training.vocabulary import build_sequences

SMALL = SimulatorOptions(side_px=48, views_per_scene=3, max_decisions=60)
SEED = 1003
NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


@pytest.fixture(scope="module")
def driven():
    return drives.drive(SEED, 48, np.random.default_rng(0))


@pytest.mark.parametrize("stage", dict.fromkeys(STAGES))
def test_samples_of_every_stage_encode_and_repeat(stage):
    options = replace(SMALL, stage=stage)
    samples = scene_samples(SEED, options)
    assert samples and len({sample.key for sample in samples}) == len(samples)
    sequences = build_sequences()
    for sample in samples[:3]:
        encoded = encode(sample, sequences.tokenizer, sequences.config)
        assert int((encoded.labels != IGNORED).sum()) >= 2
    again = scene_samples(SEED, options)
    assert [s.turns for s in again] == [s.turns for s in samples]
    for one, other in zip(samples[-1].frames, again[-1].frames, strict=True):
        assert np.array_equal(one, other)


def test_a_drive_is_labelled_by_the_oracle_and_ends_with_stop(driven):
    samples = drives.decision_samples(driven, "x")
    assert samples[-1].turns[0].answer == ACTIONS[0].sentence
    assert [len(s.frames) for s in samples] == [place + 1 for place, _ in driven.decided]


def test_passings_are_near_and_their_times_in_order(driven):
    found = drives.passes(driven)
    assert found
    for passed in found:
        assert 0 <= passed.first <= passed.nearest <= passed.last < len(driven.poses)
    sample = next(
        s
        for s in drives.video_samples(driven, np.random.default_rng(0), "x", 100)
        if s.key.endswith("when")
    )
    ((begin_s, end_s),) = sample.time_spans_s
    tokens = [int(text) for text in sample.turns[0].answer.replace(">", "<t").split("<t")[1::2]]
    assert sample.duration_s == pytest.approx(0.5 * (len(driven.poses) - 1))
    for token, time_s in zip(tokens, (begin_s, end_s), strict=True):
        assert token / 99 * sample.duration_s == pytest.approx(time_s, abs=sample.duration_s / 99)


def test_times_are_asked_of_stretches_too_in_which_the_thing_is_seen_then_passed(driven):
    passed = {thing.name: thing for thing in drives.passes(driven)}
    samples = [
        s
        for s in drives.video_samples(driven, np.random.default_rng(1), "x", 100, 12)
        if s.key.endswith("when")
    ]
    assert len(samples) == len({s.key for s in samples}) == 12
    assert len(samples[0].frames) == len(driven.poses)
    lengths = {len(s.frames) for s in samples}
    assert len(lengths) > 3 and min(lengths) >= min(16, len(driven.poses))
    for sample in samples:
        thing = passed[sample.turns[0].user.split("pass the ")[1].rstrip("?")]
        ((begin_s, end_s),) = sample.time_spans_s
        assert 0.0 <= begin_s <= end_s <= sample.duration_s == 0.5 * (len(sample.frames) - 1)
        at = [int(time_s / 0.5) for time_s in (begin_s, end_s)]
        assert np.array_equal(sample.frames[at[0]], driven.frames[thing.first])
        assert np.array_equal(sample.frames[at[1]], driven.frames[thing.last])
        seen = driven.frames[thing.seen]
        assert any(np.array_equal(frame, seen) for frame in sample.frames)


def test_turns_are_what_the_poses_say(driven):
    sides = set()
    for seed in range(12):
        sample = drives.video_samples(driven, np.random.default_rng(seed), "x")[0]
        if not sample.key.endswith("turn"):
            continue
        sides.add(sample.turns[0].answer)
        starts = [
            start
            for start in range(len(driven.poses) - len(sample.frames) + 1)
            if np.array_equal(driven.frames[start], sample.frames[0])
            and np.array_equal(driven.frames[start + len(sample.frames) - 1], sample.frames[-1])
        ]
        poses = driven.poses[starts[0] : starts[0] + len(sample.frames)]
        net = wrap(np.diff(poses[:, 2])).sum()
        expected = "It went ahead." if abs(net) < 0.1 else "Left." if net > 0 else "Right."
        assert sample.turns[0].answer == expected
    assert len(sides) >= 2


def test_a_stream_goes_on_where_its_state_stands_and_parts_are_disjoint():
    options = {"stage": "captions", "side_px": 32, "views_per_scene": 2, "num_scenes": 3}
    source = open_simulator("views", options)
    whole = [sample.key for sample in source.open(Part(), seed=4, epochs=2)]
    assert len(whole) == 12 and len(set(whole)) == 6
    stream = source.open(Part(), seed=4, epochs=2)
    first = [next(stream).key for _ in range(5)]
    state = json.loads(json.dumps(stream.state_dict()))
    later = source.open(Part(), seed=4, epochs=2)
    later.load_state_dict(state)
    assert first + [sample.key for sample in later] == whole
    parts = [{s.key for s in source.open(Part(i, 2), seed=4, epochs=1)} for i in range(2)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == set(whole)


@pytest.mark.slow
def test_the_model_that_drives_sees_every_frame_where_it_was_taken():
    """All frames since its last decision were handed over at the newest pose, and dropped."""
    import nvila_ros.training.simulator_source as module

    options = replace(SMALL, stage="dagger", driver=str(NANO), driver_share=1.0, max_decisions=6)
    samples = scene_samples(SEED, replace(options, side_px=192, noise=0.0))
    policy = module._policies[str(NANO)]
    assert policy.num_samples >= len(samples[-1].frames) - 3  # the last motion's are not seen yet
    assert samples[0].turns != samples[-1].turns


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="stage is 'caption'"):
        open_simulator("x", {"stage": "caption"})
    with pytest.raises(ConfigError, match="side_px"):
        open_simulator("x", {"stage": "captions", "sidepx": 3})

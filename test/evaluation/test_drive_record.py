# SPDX-License-Identifier: Apache-2.0
"""Record of a watched drive: what is kept, how it is judged, and the video made of it."""

import dataclasses

import av
import numpy as np
import pytest
from PIL import Image

from nvila_ros.config import EvaluationConfig
from nvila_ros.evaluation.drive_record import DriveRecord, HeardDecision, judge, latency_summary
from nvila_ros.evaluation.metrics import resample
from nvila_ros.evaluation.typed_goal import goal_notes, last_named, with_instruction
from nvila_ros.evaluation.video import write_drive_video, write_video
from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.instructions import unique_furniture


@pytest.fixture(scope="module")
def episode():
    return episode_from_seed(900_000)


def decision(heard_s: float, index: int = 3) -> HeardDecision:
    return HeardDecision(
        heard_s=heard_s,
        sentence="The next action is move forward 75 cm.",
        index=index,
        confidence=0.75,
        latency_s=0.2,
        num_encoded_frames=1,
        goal_distance_m=2.0,
        strip=(None,) * 7 + (np.zeros((8, 8, 3), np.uint8),),
    )


def driven_along(path, result: str) -> DriveRecord:
    record = DriveRecord(result=result)
    for number, (x_m, y_m) in enumerate(path):
        record.add_pose(float(number), x_m, y_m, 0.0)
    return record


def test_standing_still_adds_no_pose():
    record = DriveRecord()
    for stamp_s in range(5):
        record.add_pose(float(stamp_s), 1.0, 2.0, 0.001 * stamp_s)
    record.add_pose(5.0, 1.02, 2.0, 0.0)
    assert len(record.poses) == 2
    assert record.poses_until(3.0).tolist() == [[1.0, 2.0, 0.0]]


def test_decision_at_a_time_is_the_newest_heard():
    record = DriveRecord(decisions=[decision(1.0), decision(2.0)])
    assert record.decision_at(0.5) is None
    assert record.decision_at(1.5) is record.decisions[0]
    assert record.decision_at(9.0) is record.decisions[1]


def test_driving_the_reference_path_and_stopping_is_a_success(episode):
    record = driven_along(episode.path, "SUCCEEDED")
    record.decisions = [decision(0.0), decision(5.0), decision(10.0, index=0)]
    record.collisions_s = [6.0, 7.0]
    metrics = judge(record, episode, EvaluationConfig())
    assert metrics.success and metrics.ndtw > 0.95 and metrics.spl > 0.9
    assert (metrics.num_decisions, metrics.num_primitives, metrics.num_collisions) == (3, 2, 1)


def test_dense_odometry_is_judged_like_sparse(episode):
    dense = resample(np.asarray(episode.path), 0.02)
    sparse = judge(driven_along(episode.path, "SUCCEEDED"), episode, EvaluationConfig())
    judged = judge(driven_along(dense, "SUCCEEDED"), episode, EvaluationConfig())
    assert judged.ndtw == pytest.approx(sparse.ndtw, abs=0.02)


def test_arriving_without_stop_is_no_success(episode):
    metrics = judge(driven_along(episode.path, "TIMEOUT"), episode, EvaluationConfig())
    assert metrics.oracle_success and not metrics.success


def test_latency_of_no_decision_is_unknown():
    assert latency_summary(DriveRecord())["p50_s"] is None
    summary = latency_summary(DriveRecord(decisions=[decision(0.0), decision(1.0)]))
    assert summary["decisions_per_s"] == pytest.approx(5.0)


def test_video_has_a_picture_per_camera_image_and_a_hold(tmp_path, episode):
    record = driven_along(episode.path, "SUCCEEDED")
    record.decisions = [decision(0.25)]
    for number in range(4):
        record.add_image(0.1 * number, np.full((32, 32, 3), 60 * number, np.uint8))
    path = tmp_path / "episode.mp4"
    write_drive_video(path, record, episode, rate_hz=10)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 4 + 15
    assert frames[0].to_ndarray(format="rgb24").std() > 10


def test_video_falls_back_to_a_codec_that_is_always_there(tmp_path, monkeypatch):
    monkeypatch.setattr("nvila_ros.evaluation.video.PREFERRED_CODECS", ("nothing", "mpeg4"))
    path = tmp_path / "video.mp4"
    assert write_video(path, lambda: [Image.new("RGB", (64, 48))] * 3, 10) == "mpeg4"
    assert path.stat().st_size > 0


def test_typed_instruction_is_judged_by_the_thing_it_names(episode):
    other = next(
        piece
        for piece in unique_furniture(episode.scene)
        if piece.solid and piece.id != episode.goal_furniture_id
    )
    text = f"Please drive to the  {other.colour.upper()} {other.category} and wait."
    typed, was_named = with_instruction(episode, text)
    assert was_named and typed.goal_furniture_id == other.id and typed.instruction == text
    distance_m = np.hypot(typed.goal[0] - other.x_m, typed.goal[1] - other.y_m)
    assert distance_m < 2.5 and typed.geodesic_m > 0.0
    assert np.allclose(typed.path[0], episode.start[:2], atol=0.1)
    assert np.allclose(typed.path[-1], typed.goal, atol=0.1)


def test_the_last_name_in_the_text_is_the_goal(episode):
    first, second = unique_furniture(episode.scene)[:2]
    text = (
        f"pass the {first.colour} {first.category}, stop at the {second.colour} {second.category}"
    )
    assert last_named(episode, text) == second


def test_a_name_inside_of_other_words_is_no_name(episode):
    """'colored sofa' was a red sofa, and 'pink bedroom' a pink bed."""
    scene = dataclasses.replace(
        episode.scene,
        furniture=tuple(
            dataclasses.replace(piece, colour=colour, category=category)
            for piece, (colour, category) in zip(
                episode.scene.furniture, [("red", "sofa"), ("pink", "bed")], strict=False
            )
        ),
    )
    made = dataclasses.replace(episode, scene=scene)
    assert last_named(made, "Stop by the cream-colored sofa in the pink bedroom.") is None
    assert last_named(made, "Stop by the red  SOFA.").category == "sofa"


@pytest.mark.parametrize(
    ("text", "reason", "judge"),
    [
        ("Wander about.", "the sentence names no thing", "the episode's own goal, the blue coffee"),
        ("Stop by the red sofa.", "this apartment has no red sofa", "the episode's own goal, the"),
        (
            "Pass the red bed and stop by the red sofa.",
            "this apartment has no red sofa",
            "the red bed",
        ),
    ],
)
def test_a_goal_that_was_not_named_is_told_with_what_can_be(text, reason, judge):
    lines = goal_notes_for(text)
    assert lines[0].startswith(reason) and f"; judged by {judge}" in lines[0]
    assert len(lines) == 2 and ", ".join(lines).count(",") <= 10
    if "sofa" in text:
        assert lines[1].startswith("things here: pink sofa,")  # what is nearest to the wish first


def goal_notes_for(text, seed=900_000):
    typed, was_named = with_instruction(episode_from_seed(seed), text)
    return goal_notes(typed, was_named=was_named)


def test_a_goal_that_was_named_needs_no_note():
    assert goal_notes_for("Wait by the yellow desk.") == []


def test_a_name_of_two_things_is_told(episode):
    twin = dataclasses.replace(episode.scene.furniture[0], id=99)
    scene = dataclasses.replace(episode.scene, furniture=(*episode.scene.furniture, twin))
    text = f"Stop by the {twin.colour} {twin.category}."
    typed = dataclasses.replace(episode, scene=scene, instruction=text)
    reason, things = goal_notes(typed, was_named=False)
    assert reason.startswith(f"this apartment has more than one {twin.colour} {twin.category}")
    assert f" {twin.colour} {twin.category}" not in things


def test_text_that_names_nothing_keeps_the_goal(episode):
    typed, was_named = with_instruction(episode, "Wander about.")
    assert not was_named
    assert typed == dataclasses.replace(episode, instruction="Wander about.")

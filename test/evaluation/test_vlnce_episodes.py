# SPDX-License-Identifier: Apache-2.0
"""VLN-CE's episode files, and the axes of two worlds."""

import gzip
import json
import math

import numpy as np
import pytest

from nvila_ros.evaluation.vlnce_episodes import (
    EpisodeFileError,
    habitat_from_ros,
    habitat_from_yaw,
    load_vlnce,
    ros_from_habitat,
    yaw_from_habitat,
)


def row(number, language=None):
    instruction = {"instruction_text": " Walk past the sofa. ", "instruction_tokens": [1]}
    if language:
        instruction["language"] = language
    return {
        "episode_id": number,
        "trajectory_id": 7,
        "scene_id": "mp3d/abc/abc.glb",
        "start_position": [1.0, 0.1, -2.0],
        "start_rotation": habitat_from_yaw(math.pi / 2),
        "info": {"geodesic_distance": 6.5},
        "goals": [{"position": [1.0, 0.1, -8.0], "radius": 3.0}],
        "reference_path": [[1.0, 0.1, -2.0], [1.0, 0.1, -8.0]],
        "instruction": instruction,
    }


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / name, "wt") as file:
        json.dump(content, file)


def test_axes_are_those_of_rep_103():
    np.testing.assert_allclose(ros_from_habitat([0, 0, -1]), [1, 0, 0])  # ahead
    np.testing.assert_allclose(ros_from_habitat([-1, 0, 0]), [0, 1, 0])  # to the left
    np.testing.assert_allclose(ros_from_habitat([0, 1, 0]), [0, 0, 1])  # up
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(habitat_from_ros(ros_from_habitat(points)), points)
    assert np.linalg.det(ros_from_habitat(np.eye(3))) == pytest.approx(1.0)  # no mirror


@pytest.mark.parametrize("yaw_rad", [0.0, 0.5, -2.0, 3.1])
def test_headings_go_there_and_back(yaw_rad):
    assert yaw_from_habitat(habitat_from_yaw(yaw_rad)) == pytest.approx(yaw_rad)


def test_a_rotation_that_is_none_is_named():
    with pytest.raises(EpisodeFileError, match="quaternion"):
        yaw_from_habitat([0.0, 0.0, 0.0, 0.0])


def test_r2r(tmp_path):
    write(tmp_path / "val", "val.json.gz", {"episodes": [row(1), row(2)]})
    oracle = {"1": {"locations": [[1.0, 0.1, -2.0 - 0.25 * step] for step in range(25)]}}
    write(tmp_path / "val", "val_gt.json.gz", oracle)
    first, second = load_vlnce(tmp_path, "r2r", "val")
    assert first.episode_id == "1" and first.instruction == "Walk past the sofa."
    np.testing.assert_allclose(first.start_m, [2.0, -1.0, 0.1])
    assert first.start_yaw_rad == pytest.approx(math.pi / 2)
    np.testing.assert_allclose(first.goal_m, [8.0, -1.0, 0.1])
    assert first.geodesic_m == 6.5
    assert len(first.reference_m) == 25 and len(second.reference_m) == 2


def test_rxr_is_read_in_english(tmp_path):
    rows = [row(1, "en-US"), row(2, "hi-IN"), row(3, "en-IN")]
    write(tmp_path / "val", "val_guide.json.gz", {"episodes": rows})
    assert [e.episode_id for e in load_vlnce(tmp_path, "rxr", "val")] == ["1", "3"]
    assert len(load_vlnce(tmp_path, "rxr", "val", languages=["hi-IN"])) == 1


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(EpisodeFileError, match=r"<split>\.json\.gz"):
        load_vlnce(tmp_path, "r2r", "val")
    broken = row(5)
    del broken["goals"]
    write(tmp_path / "val", "val.json.gz", {"episodes": [broken]})
    with pytest.raises(EpisodeFileError, match="episode 5 lacks 'goals'"):
        load_vlnce(tmp_path, "r2r", "val")

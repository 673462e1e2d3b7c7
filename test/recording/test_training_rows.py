# SPDX-License-Identifier: Apache-2.0
"""Recordings to rows: what was driven is the answer, whoever drove; and back from the shards."""

import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.errors import DataError
from nvila_ros.recording.bag_episodes import cut_episodes
from nvila_ros.recording.bag_reader import read_recording
from nvila_ros.recording.training_rows import Labels, RowCounts, require_rows, samples


def rows_of(path, instruction=None, **options):
    recording, counts = read_recording(path), RowCounts()
    episodes = cut_episodes(recording, instruction)
    return list(samples(recording, episodes, counts, **options)), counts, recording


def answers(rows):
    return [row.turns[0].answer for row in rows]


def sentences(*indices):
    return [ACTIONS[index].sentence for index in indices]


def test_a_models_drive_gives_back_its_decisions(model_drive):
    rows, counts, _ = rows_of(model_drive)
    assert answers(rows) == sentences(5, 3, 7, 0)
    assert [len(row.frames) for row in rows] == [1, 3, 6, 7]
    assert {row.turns[0].user for row in rows} == {"Go to the sofa."}
    assert len({row.group for row in rows}) == 1 and counts.num_rows == 4
    decided, _, _ = rows_of(model_drive, labels=Labels.decided)
    assert answers(decided) == answers(rows)
    assert [len(row.frames) for row in decided] == [1, 3, 6, 7]


def test_a_joystick_drive_ends_with_stop_where_it_rests(bag):
    bag.rest(0.5)
    bag.drive(0.25, steps=7)
    bag.drive(0.5, steps=3)
    bag.drive(0.0, 45, steps=4)
    bag.rest(1.5)
    rows, counts, _ = rows_of(bag.close(), "Go left.")
    assert answers(rows) == sentences(3, 6, 0)
    assert counts.num_without_stop == 0


def test_a_drive_that_is_cut_off_has_no_stop(bag):
    bag.rest(0.5)
    bag.drive(0.5)
    rows, counts, _ = rows_of(bag.close(), "Go.")
    assert answers(rows) == sentences(2) and counts.num_without_stop == 1


def test_an_arc_becomes_turns_and_stretches(bag):
    bag.rest(0.3)
    bag.drive(1.0, 60, steps=40)
    bag.rest(1.0)
    rows, _, _ = rows_of(bag.close(), "Go around.")
    turns = [row for row in answers(rows) if "left" in row]
    forward_cm = sum(int(text.split()[6]) for text in answers(rows) if "forward" in text)
    assert len(turns) >= 2 and 75 <= forward_cm <= 100
    assert sum(int(text.split()[6]) for text in turns) == 60
    assert "right" not in " ".join(answers(rows))


def test_backing_up_ends_the_rows_there(bag):
    bag.rest(0.3)
    bag.drive(0.5)
    bag.drive(-0.5)
    bag.drive(0.0, 45)
    rows, counts, _ = rows_of(bag.close(), "Go.")
    assert answers(rows) == sentences(2) and counts.num_backwards == 1


@pytest.mark.parametrize("keeps, expected", [(False, 0), (True, 1)])
def test_what_the_navigator_gave_up_is_left_out(bag, keeps, expected):
    bag.say("Go.")
    bag.rest(0.2)
    bag.drive(0.25)
    bag.end("LOST")
    rows, counts, recording = rows_of(bag.close(), keeps_failed=keeps)
    assert len(rows) == expected
    assert counts.num_failed == 1 - expected
    if not rows:
        with pytest.raises(DataError, match="1 failed"):
            require_rows(recording, counts)


def test_a_robot_that_stood_gives_no_rows(bag):
    bag.rest(2.0)
    rows, counts, recording = rows_of(bag.close(), "Go.")
    assert not rows and counts.num_still == 1
    with pytest.raises(DataError, match="nothing was driven"):
        require_rows(recording, counts)


def test_rows_come_back_from_shards(model_drive, tmp_path):
    pytest.importorskip("webdataset")
    from nvila_ros.training.data.shard_writing import write_shards
    from nvila_ros.training.data.shards import find_shards
    from nvila_ros.training.data.stream import Part

    rows, _, _ = rows_of(model_drive)
    written = write_shards(rows, tmp_path / "shards")
    assert written.num_samples == 4 and not written.broken
    read = list(find_shards(str(tmp_path / "shards"), "recordings").open(Part(), 0, epochs=1))
    assert sorted(row.key for row in read) == sorted(row.key for row in rows)
    by_key = {row.key: row for row in read}
    for row in rows:
        assert by_key[row.key].turns == row.turns
        assert by_key[row.key].frames[-1].load().size == (16, 16)

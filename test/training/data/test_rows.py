# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvila_ros.actions import ACTIONS
from nvila_ros.errors import ConfigError, DataError
from nvila_ros.training.data.mixture import SourceConfig, guess_format, open_source
from nvila_ros.training.data.rows import RowsSource
from nvila_ros.training.data.sample import ClipFile, Sample, open_frame
from nvila_ros.training.data.stream import BrokenRow, Part
from nvila_ros.training.data.trajectories import Decision, decisions, streamvln_actions

SENTENCES = [action.sentence for action in ACTIONS]


def save_frames(folder: Path, count: int, name: str = "frame_{}.jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shade = np.full((6, 8, 3), 10 * number, np.uint8)
        Image.fromarray(shade).save(folder / name.format(number))


def rows_of(path: Path, content: Any, **options: Any) -> list[Sample | BrokenRow]:
    text = json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return list(RowsSource("set", path, **options).rows())


def good(rows: list[Sample | BrokenRow]) -> list[Sample]:
    assert all(isinstance(row, Sample) for row in rows), rows
    return rows  # type: ignore[return-value]


def test_llava_conversations(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    talk = [
        {"from": "human", "value": "What is it?\n<image>"},
        {"from": "gpt", "value": "A sofa."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Red."},
    ]
    content = [
        {"id": "1", "image": "a.jpg", "conversations": talk},
        {"id": "2", "image": ["a.jpg", "a.jpg"], "conversations": talk},
        {"id": "3", "video": "clip.mp4", "conversations": talk},
        {"id": "4", "conversations": [dict(m, value=m["value"][:4]) for m in talk[:2]]},
    ]
    image, two, video, text = good(rows_of(tmp_path / "rows.json", content, format="llava"))
    assert [turn.user for turn in image.turns] == ["<image>What is it?", "Which colour?"]
    assert two.turns[0].user.startswith("<image><image>What") and len(two.frames) == 2
    assert video.turns[0].user == "<vila/video>What is it?" and video.kind == "video"
    assert video.frames == (ClipFile(tmp_path / "clip.mp4"),)
    assert text.kind == "text" and text.turns[0].user == "What"
    assert len({row.key for row in (image, two, video, text)}) == 4


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"id": 1}, "no 'conversations'"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "does not end with an answer"),
        ({"conversations": [{"from": "gpt", "value": "a"}] * 2}, "users and answers alternate"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "<image>a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            "asks for 1 pictures, the row names none",
        ),
        ("nonsense", "malformed row"),
    ],
)
def test_a_broken_conversation_is_a_broken_row(tmp_path: Path, row: Any, reason: str) -> None:
    (broken,) = rows_of(tmp_path / "rows.json", [row], format="llava")
    assert isinstance(broken, BrokenRow) and reason in broken.reason and "rows.json" in broken.where


def test_navila_rows(tmp_path: Path) -> None:
    save_frames(tmp_path / "a", 3)
    frames = [f"a/frame_{n}.jpg" for n in range(3)]
    content = [
        {"video_id": "a", "q": "go\nto the sofa .", "a": SENTENCES[3], "frames": frames[:2]},
        {"video_id": "a", "q": "go", "a": "The next action is stop.", "frames": frames},
    ]
    rows = good(rows_of(tmp_path / "rows.json", content, format="navila", stop_repeats=5))
    assert len(rows) == 6 and len({row.key for row in rows}) == 6
    assert rows[0].kind == "navigation" and rows[0].turns[0].answer == SENTENCES[3]
    assert rows[0].group == "a"
    assert np.asarray(open_frame(rows[1].frames[-1])).mean() == pytest.approx(20, abs=2)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"frames": []}, "no frames"),
        ({"a": "dance"}, "expected one action"),
        ({"q": None, "frames": 3}, "malformed row"),
    ],
)
def test_broken_navila_rows(tmp_path: Path, change: dict, reason: str) -> None:
    row = {"video_id": "a", "q": "go", "a": SENTENCES[0], "frames": ["x.jpg"], **change}
    (broken,) = rows_of(tmp_path / "rows.json", [row], format="navila")
    assert isinstance(broken, BrokenRow) and reason in broken.reason


def test_envdrop_rows_ask_for_the_way(tmp_path: Path) -> None:
    save_frames(tmp_path / "7", 4)
    content = [
        {"video_id": "7", "instruction": "Walk past the sofa."},
        {"video_id": "8", "instruction": "x"},
    ]
    row, broken = rows_of(tmp_path / "rows.json", content, format="envdrop")
    assert isinstance(row, Sample) and row.kind == "video"
    assert row.turns[0].answer == "Walk past the sofa." and row.turns[0].user.count("<image>") == 1
    assert isinstance(broken, BrokenRow) and "does not exist" in broken.reason


def test_streamvln_trajectories(tmp_path: Path) -> None:
    save_frames(tmp_path / "images/s_r2r_000001/rgb", 6, "{:03d}.jpg")
    content = [
        {
            "id": 1,
            "video": "images/s_r2r_000001",
            "instructions": ["Go.", "Walk."],
            "actions": [-1, 1, 1, 1, 2, 1],
        },
        {"id": 2, "video": "images/none", "instructions": ["Go."], "actions": [-1, 1]},
        {"id": 3, "video": "images/none", "instructions": ["Go."], "actions": [1]},
    ]
    rows = rows_of(tmp_path / "rows.json", content, format="streamvln")
    drive = good(rows[:8])
    assert [row.turns[0].answer for row in drive[:4]] == [
        SENTENCES[3],
        SENTENCES[4],
        SENTENCES[1],
        SENTENCES[0],
    ]
    assert [len(row.frames) for row in drive[:4]] == [1, 4, 5, 6]
    assert {row.turns[0].user for row in drive} == {"Go.", "Walk."}
    reasons = [row.reason for row in rows[8:] if isinstance(row, BrokenRow)]
    assert len(reasons) == 3  # two decisions without frames, one list without its -1
    assert "does not exist" in reasons[0] and "begin with -1" in reasons[2]


def test_vln_ce_episodes_and_their_actions(tmp_path: Path) -> None:
    save_frames(tmp_path / "frames/11", 5)
    episodes = {
        "episodes": [
            {"episode_id": 11, "instruction": {"instruction_text": "Go to the sofa."}},
            {"episode_id": 12, "instruction": {"instruction_text": "Go."}},
        ]
    }
    truth = gzip.compress(json.dumps({"11": {"actions": [2, 2, 1, 1, 0]}}).encode())
    (tmp_path / "train_gt.json.gz").write_bytes(truth)
    rows = rows_of(tmp_path / "train.json.gz", episodes, format="r2r", media=tmp_path / "frames")
    answers = [row.turns[0].answer for row in rows if isinstance(row, Sample)]
    assert answers == [SENTENCES[5], SENTENCES[2], SENTENCES[0]]
    assert isinstance(rows[-1], BrokenRow) and "episode 12" in rows[-1].reason
    summary = RowsSource(
        "set", tmp_path / "train.json.gz", "r2r", tmp_path / "frames", summarises=True
    ).rows()[0]
    assert summary.kind == "video" and summary.turns[0].answer == "Go to the sofa."


def test_rxr_turns_by_thirty_degrees_in_the_languages_asked_for(tmp_path: Path) -> None:
    save_frames(tmp_path / "5", 3)
    episodes = {
        "episodes": [
            {"episode_id": "5", "instruction": {"instruction_text": "Go.", "language": "en-IN"}},
            {"episode_id": "6", "instruction": {"instruction_text": "Jao.", "language": "hi-IN"}},
        ]
    }
    truth = json.dumps({"5": {"actions": [3, 3, 0]}})
    (tmp_path / "train_guide_gt.json").write_text(truth)
    rows = good(rows_of(tmp_path / "train_guide.json", episodes, format="rxr"))
    assert [row.turns[0].answer for row in rows] == [SENTENCES[8], SENTENCES[8], SENTENCES[0]]


def test_runs_merge_up_to_three_units() -> None:
    assert decisions([1, 1, 1, 1, 2, 3, 3, 0]) == [
        Decision(0, 3),
        Decision(3, 1),
        Decision(4, 4),
        Decision(5, 8),
        Decision(7, 0),
    ]
    assert [d.index for d in decisions([1, 1, 1, 1, 0], every_step=True)] == [3, 3, 2, 1, 0]
    assert [d.index for d in decisions([2, 2, 2, 0], turn_deg=30)] == [5, 5, 5, 0]
    assert streamvln_actions([-1, 1, 2]) == [1, 2, 0] == streamvln_actions([-1, 1, 2, 0])


@pytest.mark.parametrize("actions", [[], [1, 4], [1, 0, 1]])
def test_an_impossible_trajectory_is_refused(actions: list[int]) -> None:
    with pytest.raises(DataError):
        decisions(actions)


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"id": 1}, {"id"')
    with pytest.raises(DataError, match="cut short"):
        RowsSource("set", path, "llava").rows()[0]


def test_formats_are_told_by_their_first_row(tmp_path: Path) -> None:
    for name, row in {
        "llava": {"conversations": []},
        "navila": {"video_id": "a", "q": "", "a": "", "frames": []},
        "streamvln": {"actions": [], "instructions": []},
        "envdrop": {"video": "a", "instruction": ""},
    }.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row))
        assert guess_format(str(path)) == name
    path.write_text('{"what": 1}')
    with pytest.raises(ConfigError, match="--format"):
        guess_format(str(path))


def test_a_source_with_a_wrong_option_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    path = str(tmp_path / "rows.json")
    with pytest.raises(ConfigError, match="stop_repeat"):
        open_source(SourceConfig(name="a", format="navila", path=path, options={"stop_repeat": 2}))
    with pytest.raises(ConfigError, match="one of"):
        open_source(SourceConfig(name="a", format="habitat", path=path))
    with pytest.raises(DataError, match="does not exist"):
        open_source(SourceConfig(name="a", format="llava", path=path + "x"))
    with pytest.raises(DataError, match="fewer workers"):
        open_source(SourceConfig(name="a", format="llava", path=path)).open(Part(), 0)

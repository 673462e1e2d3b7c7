# SPDX-License-Identifier: Apache-2.0
"""The report of a VLN-CE run is made of its files; workers do not write it."""

import json
import math

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.errors import DataError
from nvila_ros.evaluation.html_report_vlnce import entry_of_row, write_vlnce_report
from nvila_ros.evaluation.vlnce_episodes import VlnCeEpisode

EPISODE = VlnCeEpisode(
    episode_id="17",
    scene_id="mp3d/a/a.glb",
    instruction="Leave the room <now>.",
    language="en-US",
    start_m=np.zeros(3),
    start_yaw_rad=0.0,
    goal_m=np.array([0.75, 0.75, 0.0]),
    geodesic_m=1.5,
    reference_m=np.array([[0.0, 0.0, 0.0], [0.75, 0.0, 0.0]]),
)
ROW = {
    "episode_id": "17",
    "instruction": EPISODE.instruction,
    "language": "en-US",
    "sentences": [ACTIONS[3].sentence, ACTIONS[6].sentence, ACTIONS[0].sentence],
    "path_m": [[0.0, 0, 0], [0.25, 0, 0], [0.5, 0, 0], *[[0.75, 0, 0]] * 4],
    **{"sr": 1.0, "os": 1.0, "spl": 0.9, "ne": 0.75, "ndtw": 0.8, "sdtw": 0.8, "tl": 0.75},
    **{"steps": 7, "stopped": True, "num_decisions": 3, "num_collisions": 1},
}


def test_decisions_stand_where_they_were_taken():
    entry = entry_of_row(EPISODE, ROW)
    assert [decision.place for decision in entry.decisions] == [0, 3, 6]
    assert [decision.index for decision in entry.decisions] == [3, 6, 0]
    assert entry.driven[3, 2] == 0.0 and entry.driven[-1, 2] == pytest.approx(math.radians(45))
    assert entry.metrics.success and entry.key == "17"


def test_page_is_made_of_the_files(tmp_path):
    with pytest.raises(DataError, match="no episodes"):
        write_vlnce_report(tmp_path / "page", {}, [EPISODE], tmp_path)
    (tmp_path / "episodes").mkdir()
    file = tmp_path / "episodes" / "17.json"
    file.write_text(json.dumps(ROW))
    facts = {"title": "r2r-ce val_unseen"}
    page = write_vlnce_report(tmp_path / "page", facts, [EPISODE], tmp_path).read_text()
    assert "r2r-ce val_unseen" in page and "Leave the room &lt;now&gt;." in page
    assert '"radius":3.0' in page
    file.write_text("{}")
    with pytest.raises(DataError, match=r"17\.json is no result"):
        write_vlnce_report(tmp_path / "page", {}, [EPISODE], tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""The report: one file that needs nothing else, whatever an instruction says."""

import base64
import dataclasses
import gzip
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import DataError
from nvila_ros.evaluation import html_report, html_report_groups
from nvila_ros.evaluation.drivers import OracleDriver
from nvila_ros.evaluation.html_report import pictures_per_episode, write_report
from nvila_ros.evaluation.html_report_entries import (
    DecisionEntry,
    entry_of_rollout,
    instruction_kind,
    key_decisions,
    payload,
)
from nvila_ros.evaluation.rollout import run_episode
from nvila_ros.sim.episodes import episode_from_seed

RUN = {"policy": "oracle", "control": "none", "success_radius_m": 1.0}
CONFIG = EvaluationConfig(image_side_px=32)


@pytest.fixture(scope="module")
def entry():
    rollout = run_episode(episode_from_seed(900_000), OracleDriver(), CONFIG, keeps_frames=True)
    return entry_of_rollout(rollout)


def renamed(entry, key, **changes):
    metrics = dataclasses.replace(entry.metrics, **changes.pop("metrics", {}))
    return dataclasses.replace(entry, key=key, metrics=metrics, **changes)


def payloads(page):
    found = re.findall(r'<script type="application/json">(.*?)</script></details>', page)
    return [json.loads(text) for text in found]


def test_page_holds_everything_and_loads_nothing(entry, tmp_path):
    failed = renamed(entry, "2", metrics={"success": False, "stopped": False, "spl": 0.0})
    page = write_report(tmp_path, RUN, [entry, failed]).read_text(encoding="utf-8")
    assert not re.search(
        r"""(src|href)=["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org)""", page
    )
    assert ">2 episodes ·" in page and "normal" not in page
    assert entry.instruction in page and "no_stop_after_passing_goal" in page
    ((drawn,), _) = payloads(page)
    assert len(drawn["decisions"]) == len(entry.decisions)
    assert drawn["driven"][-1][:2] == pytest.approx(entry.driven[-1, :2], abs=0.006)
    assert drawn["plan"]["doors"] and drawn["reference"] and drawn["radius"] == 1.0
    assert all(row[5] is not None for row in drawn["decisions"])  # there is room for each picture
    picture = Image.open(io.BytesIO(base64.b64decode(drawn["pictures"][0])))
    assert picture.size == (32, 32)


def test_numbers_beside_the_page_are_those_of_the_summary(entry, tmp_path):
    write_report(tmp_path, RUN, [entry])
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["success_rate"] == 1.0 and content["intervals"]["success_rate"][1] == 1.0
    assert [row["key"] for row in content["episodes"]] == [entry.key]
    line = gzip.decompress((tmp_path / "episodes.jsonl.gz").read_bytes())
    assert json.loads(line)["key"] == entry.key and json.loads(line)["pictures"] == []


def test_zero_episodes_are_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match="no episodes to report on"):
        write_report(tmp_path, RUN, [])


def test_one_key_for_two_episodes_is_refused(entry, tmp_path):
    with pytest.raises(DataError, match="twice"):
        write_report(tmp_path, RUN, [entry, entry])


def test_an_instruction_cannot_break_out_of_the_page(entry, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    page = write_report(tmp_path, RUN, [renamed(entry, "1", instruction=evil)]).read_text()
    assert "<script>alert" not in page and "<img src=x" not in page
    assert payloads(page)[0][0]["instruction"] == evil


def test_an_episode_that_ended_behind_a_wall_is_shown(entry, tmp_path):
    lost = renamed(entry, "1", metrics={"navigation_error_m": float("inf"), "success": False})
    page = write_report(tmp_path, RUN, [lost]).read_text()
    assert "no way leads to the goal" in page


def test_episodes_without_plan_pictures_or_probabilities_are_shown(entry, tmp_path):
    bare = renamed(
        entry,
        "7",
        plan=None,
        kind=None,
        num_doors=None,
        decisions=(DecisionEntry(index=0, confidence=1.0),),
    )
    page = write_report(tmp_path, {"title": "R2R-CE val_unseen"}, [bare]).read_text()
    assert "R2R-CE val_unseen" in page and "doors named" not in page and "Latency of" not in page
    assert payloads(page)[0][0]["decisions"] == [[0, 1.0, [], None, None, None]]


def test_pictures_are_thinned_to_the_budget_and_stored_once(entry):
    same = dataclasses.replace(entry.decisions[0], picture=b"x" * 300)
    many = dataclasses.replace(entry, decisions=(same,) * 20)
    assert pictures_per_episode([many] * 10, 10**6) == 20
    assert pictures_per_episode([many] * 10, 400 * 50) == 5
    assert pictures_per_episode([many] * 10, 0) == 2
    drawn = payload(many, 5, 1.0)
    assert len(drawn["pictures"]) == 1
    assert sum(row[5] is not None for row in drawn["decisions"]) == 5


def test_key_decisions_are_the_ends_and_the_doubtful():
    decisions = [DecisionEntry(index=1, confidence=0.9) for _ in range(40)]
    decisions[17] = DecisionEntry(index=1, confidence=0.2)
    chosen = key_decisions(decisions, 8)
    assert {0, 17, 39} <= chosen and len(chosen) == 8
    assert key_decisions(decisions[:3], 8) == {0, 1, 2}


def test_groups_count_every_episode_once(entry):
    entries = [
        renamed(entry, str(n), metrics={"start_distance_m": 3.0 + 0.9 * n, "success": n % 2 == 0})
        for n in range(10)
    ]
    rows = html_report_groups.success_by_distance(entries)
    assert sum(row.total for row in rows) == 10 and sum(row.count for row in rows) == 5
    assert rows[0].label == "2 to 4 m" and len(rows) <= 6
    assert all(row.low <= row.value <= row.high for row in rows)
    assert sum(share.count for _, share in html_report_groups.failures(entries)) == 5


def test_latencies_above_the_99th_percentile_are_in_the_last_bin(entry):
    decisions = tuple(
        DecisionEntry(index=1, confidence=1.0, latency_s=value)
        for value in [*np.linspace(0.1, 0.2, 500), 9.0]
    )
    histogram = html_report_groups.latency_histogram(
        [dataclasses.replace(entry, decisions=decisions)]
    )
    assert sum(histogram.counts) == 501 and histogram.max_s == 9.0
    assert histogram.edges_s[-1] < 0.25


def test_instruction_kinds_do_not_depend_on_order():
    assert instruction_kind(["turn", "door", "turn", "goal"]) == "door + turn"
    assert instruction_kind(["goal"]) == "goal only"


def test_text_in_a_script_element_cannot_end_it():
    assert "<" not in html_report.safe_json({"a": "</script>&<!--"})

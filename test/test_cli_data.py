# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nvila_ros.actions import ACTIONS
from nvila_ros.cli import app
from nvila_ros.errors import ConfigError, DataError

RUNNER = CliRunner()


def run(*arguments: str) -> dict:
    result = RUNNER.invoke(app, ["data", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for number in range(4):
        Image.fromarray(np.full((20, 30, 3), 50 * number, np.uint8)).save(
            tmp_path / f"{number}.jpg"
        )
    content = [
        {
            "video_id": f"v{number // 5}",
            "q": "Go to the sofa.",
            "a": ACTIONS[number % 4].sentence,
            "frames": [f"{frame}.jpg" for frame in range(1 + number % 4)],
        }
        for number in range(20)
    ]
    content[7]["frames"] = []
    content[11]["frames"] = ["absent.jpg"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    return path


def test_check_counts_and_draws(rows: Path, tmp_path: Path) -> None:
    report = run("check", str(rows), "--sheet", str(tmp_path / "sheet.png"), "--max-broken", "0.2")
    assert (report["num_samples"], report["num_pictures"]) == (18, 4)
    assert report["subsets"]["rows"]["labels"][ACTIONS[0].sentence] == 5
    assert report["picture_sizes"] == {"30 x 20": 4}
    reasons = [row["reason"] for row in report["broken"]["examples"]]
    assert "no frames" in reasons[0] and "absent.jpg" in reasons[1]
    assert Image.open(tmp_path / "sheet.png").width > 700


def test_check_fails_where_too_many_rows_are_broken(rows: Path) -> None:
    with pytest.raises(DataError, match=r"2 rows are broken \(10.0%\)"):
        RUNNER.invoke(app, ["data", "check", str(rows)], catch_exceptions=False)


def test_check_counts_tokens_of_a_model(rows: Path) -> None:
    report = run("check", str(rows), "--model", "nvila_ros/models/nano", "--max-broken", "0.2")
    assert report["subsets"]["rows"]["tokens"]["mean"] > 8 * 16
    assert report["packing"]["padding_packed"] < report["packing"]["padding_single"]


def test_shards_are_checked_as_their_rows_were(rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    out = tmp_path / "shards"
    written = run(
        "shard", str(rows), "--out", str(out), "--samples-per-shard", "6", "--max-broken", "0.2"
    )
    assert written["num_samples"] + written["num_broken"] == 20 and written["num_shards"] == 2
    assert run("check", str(out))["num_samples"] == written["num_samples"]
    with pytest.raises(ConfigError, match="holds shards already"):
        RUNNER.invoke(app, ["data", "shard", str(rows), "--out", str(out)], catch_exceptions=False)


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="does not exist"):
        RUNNER.invoke(app, ["data", "check", "nowhere.json"], catch_exceptions=False)

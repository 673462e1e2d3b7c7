# SPDX-License-Identifier: Apache-2.0
"""Comparing runs: the tests against known values, pairing, and what cannot be compared."""

import json

import numpy as np
import pytest

from nvila_ros import cli
from nvila_ros.errors import DataError
from nvila_ros.evaluation.compare import bootstrap, compare, discordant, mcnemar, read_run
from nvila_ros.evaluation.html_report_compare import as_object, as_table, write_comparison


def row(seed, success, spl):
    return {
        "seed": seed,
        "success": success,
        "oracle_success": success,
        "spl": spl,
        "navigation_error_m": 0.5 if success else None,
        "ndtw": 0.5,
        "sdtw": 0.5,
        "trajectory_length_m": 5.0,
        "start_distance_m": 5.0,
        "num_decisions": 10,
        "num_collisions": 0,
        "instruction": "Go <there>.",
    }


def write(path, rows):
    path.write_text(json.dumps({"policy": "model", "episodes": rows}))
    return path


@pytest.fixture
def runs(tmp_path):
    first = [row(seed, seed % 4 == 0, 0.2) for seed in range(40)]
    second = [row(seed, seed % 2 == 0, 0.6) for seed in range(10, 50)]
    return read_run(write(tmp_path / "a.json", first)), read_run(write(tmp_path / "b.json", second))


def test_mcnemar_equals_hand_computed_values():
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar(7, 1) == mcnemar(1, 7)


def test_bootstrap_covers_the_mean_and_knows_chance():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.5, 1.0, 400)
    low, high, p = bootstrap(differences)
    assert low < differences.mean() < high and p < 0.001
    standard_error = differences.std(ddof=1) / 20
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.08)
    assert bootstrap(differences - differences.mean())[2] > 0.9
    assert bootstrap(np.zeros(5)) == (0.0, 0.0, 1.0)


def test_only_shared_episodes_are_compared(runs):
    differences = {found.metric: found for found in compare(*runs)}
    success = differences["success"]
    assert success.num_pairs == 30 and success.first == pytest.approx(7 / 30)
    assert success.difference == pytest.approx(8 / 30) and success.p == pytest.approx(2 / 2**8)
    assert differences["spl"].difference == pytest.approx(0.4)
    assert differences["navigation_error_m"].num_pairs == 7  # null on either side is left out
    assert discordant(*runs)[0] == [] and len(discordant(*runs)[1]) == 8
    assert as_object(*runs, list(differences.values()))["num_unpaired"] == [10, 10]
    assert as_table(*runs, list(differences.values())).row_count == len(differences)


def test_one_pair_is_one_episode(tmp_path):
    names = ("a.json", "b.json")
    runs = [read_run(write(tmp_path / name, [row(1, True, 0.5)])) for name in names]
    differences = compare(*runs)
    assert as_table(*runs, differences).caption.startswith("1 episode in both")
    assert (
        ">1 episode in both" in write_comparison(tmp_path / "page", *runs, differences).read_text()
    )


def test_page_escapes_and_shows_both(runs, tmp_path):
    page = write_comparison(tmp_path / "page", *runs, compare(*runs)).read_text()
    assert (
        "Go &lt;there&gt;." in page
        and "only B arrived" in page
        and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    )


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_run(tmp_path / "absent")
    with pytest.raises(DataError, match="no episodes"):
        read_run(write(tmp_path / "none.json", []))
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(DataError, match="no JSON"):
        read_run(tmp_path / "text.json")
    with pytest.raises(DataError, match="lack"):
        read_run(write(tmp_path / "other.json", [{"seed": 1, "success": True}]))
    runs = [read_run(write(tmp_path / f"{n}.json", [row(n, True, 1.0)])) for n in (1, 2)]
    with pytest.raises(DataError, match="share no episode"):
        compare(*runs)


def test_command_prints_one_object(runs, tmp_path, monkeypatch, capsys):
    arguments = ["nvila", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)
    assert result["num_pairs"] == 30 and result["metrics"]["success"]["test"] == "mcnemar"

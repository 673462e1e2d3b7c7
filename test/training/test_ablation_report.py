# SPDX-License-Identifier: Apache-2.0
"""An ablation's folder read back: tables, JSON and plot; what is cut or missing is named."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from nvila_ros.errors import DataError
from nvila_ros.training.ablation.report import apartment_interval, main, summarise
from nvila_ros.training.ablation.results import read_results
from nvila_ros.training.ablation.scaling_plot import write_plot

ARMS = {"plain": (40, 15), "episodes_4th": (10, 9), "episodes_16th": (3, 3)}  # episodes, arrived
SEEDS = range(900_000, 900_020)


def write_run(folder):
    """20 exams of three arms and the released model, 12 unseen decisions in 3 apartments."""
    lines = [{"s": 1.0, "encoded": True, "frames": 9, "oracle_success": 1.0}]
    exams = []
    costs = np.full((12, 10), 5.0, np.float32)
    costs[:, 3] = 1.0
    held = {"costs": costs, "apartments": np.repeat([10, 20, 30], 4)}
    for wrong, (arm, (episodes, arrived)) in enumerate(ARMS.items()):
        lines.append({"arm": arm, "decisions": 5 * episodes, "episodes": episodes})
        lines.append({"arm": arm, "step": 4, "answer": 1.0, "agreement": 0.9})
        lines.append({"arm": arm, "steps": 8, "train_s": 1.5, "regret": 0.5})
        scores = np.full((12, 10), -5.0, np.float16)
        scores[:, 3] = -1.0
        scores[: 3 * wrong, 4] = -0.5  # costs four units too many
        held[f"arm_{arm}"] = scores
        exams += [exam(arm, seed, place < arrived) for place, seed in enumerate(SEEDS)]
    exams += [exam("released", seed, True) for seed in SEEDS]
    for name, found in (("ablations", [*lines, {"done": True}]), ("exams", exams)):
        text = "".join(json.dumps(line) + "\n" for line in found)
        (folder / f"{name}.jsonl").write_text(text)
    np.savez_compressed(folder / "held_out.npz", **held)
    return folder


def exam(arm, seed, success):
    return {"arm": arm, "seed": seed, "success": success, "spl": 0.5 * success, "stopped": True,
            "decisions": 7, "regret": 1.0}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def test_arms_and_pairs_are_counted(run):
    summary = summarise(read_results(run), {"commit": "abc"})
    plain, fourth = summary["arms"]["plain"], summary["arms"]["episodes_4th"]
    assert summary["machine"] == {"commit": "abc"}
    assert summary["exams"] == {"num_seeds": 20, "first": 900_000, "last": 900_019}
    assert (plain["num_arrived"], plain["num_examined"], plain["success"]) == (15, 20, 0.75)
    assert plain["success_95"] == pytest.approx([0.5313, 0.8881], abs=1e-3)  # Wilson
    assert plain["steps"] == 8 and plain["decisions"] == 200 and plain["regret"] == 0.0
    assert fourth["regret"] == pytest.approx(1.0)  # 3 of 12 answers cost 4 too many
    assert "regret" not in summary["arms"]["released"]
    pair = next(pair for pair in summary["pairs"] if pair["against"] == "plain")
    assert (pair["arm"], pair["won"], pair["lost"]) == ("episodes_4th", 0, 6)
    assert pair["success"] == pytest.approx(-0.3) and pair["success_95"][1] < 0.0
    assert pair["p"] == pytest.approx(2 / 2**6, abs=1e-4)  # McNemar's, six of six lost
    assert pair["regret"] == pytest.approx(1.0)


def test_the_same_folder_gives_the_same_figures(run):
    found = [summarise(read_results(run), {}) for _ in range(2)]
    assert found[0] == found[1]


def test_whole_apartments_are_drawn_again():
    rng = np.random.default_rng(0)
    apartments = np.repeat(np.arange(40), 25)
    values = rng.normal(size=40)[apartments]  # the same within an apartment
    low, high = apartment_interval(values, apartments)
    spread = values.std() / np.sqrt(40)  # not of a thousand independent values
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    uneven = apartment_interval(np.array([1.0, 1.0, 1.0, 1.0]), np.array([3, 3, 3, 9]))
    assert uneven == (1.0, 1.0)


def test_command_prints_tables_and_writes_json_and_plot(run, capsys):
    figures, plot = run / "figures.json", run / "plot.svg"
    facts = ["--fact", "gpu=H100", "--fact", "commit=abc"]
    main([str(run), "--json", str(figures), "--plot", str(plot), *facts])
    printed = capsys.readouterr().out
    assert "| plain | 8 | 40 | 75.0 (53.1 to 88.8) 15 of 20 |" in printed
    assert "| episodes_4th - plain | -30.0 (" in printed
    content = json.loads(figures.read_text())
    assert content["machine"] == {"gpu": "H100", "commit": "abc"}
    assert content == summarise(read_results(run), content["machine"])
    drawn = ElementTree.parse(plot).getroot()
    words = " ".join(text for text in drawn.itertext() if text.strip())
    assert "20 unseen apartments" in words and "released weights" in words
    assert all(f" {episodes} " in words for episodes in (3, 10, 40))


def test_of_an_episode_that_was_driven_twice_the_later_counts(run):
    with (run / "exams.jsonl").open("a") as file:
        file.write(json.dumps(exam("plain", SEEDS[0], False)) + "\n")
    plain = summarise(read_results(run), {})["arms"]["plain"]
    assert (plain["num_arrived"], plain["num_examined"]) == (14, 20)


def test_an_arm_that_was_left_out_or_not_examined_is_no_error(run, capsys):
    exams = (run / "exams.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in exams if "episodes_16th" not in line]
    (run / "exams.jsonl").write_text("".join(kept))
    with (run / "ablations.jsonl").open("a") as file:
        file.write(json.dumps({"arm": "frames_1", "left_out": "no time"}) + "\n")
    main([str(run)])
    printed = capsys.readouterr().out
    assert "| episodes_16th | 8 | 3 | not examined |" in printed
    assert "| episodes_16th - episodes_4th | no common seed |" in printed
    assert "frames_1" not in printed


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ablations.jsonl", None, "cannot be read"),
        ("exams.jsonl", None, "cannot be read"),
        ("held_out.npz", None, "cannot be read"),
        ("ablations.jsonl", lambda data: data[:-9], "line 11 of 11 is cut"),
        ("exams.jsonl", lambda data: data[:-9], "line 80 of 80 is cut"),
        ("exams.jsonl", lambda data: b"[1, 2]\n", "line 1 of 1 is cut or no JSON object"),
        ("exams.jsonl", lambda data: b'{"arm": "plain", "seed": 1}\n', "line 1 lacks success"),
        ("exams.jsonl", lambda data: b"", "holds no episode"),
        ("held_out.npz", lambda data: data[: len(data) // 2], "cannot be read"),
        ("ablations.jsonl", lambda data: b'{"s": 1.0, "frames": 9}\n', "holds no arm"),
        ("ablations.jsonl", lambda data: data.replace(b"plain", b"other"), "lacks arm_other"),
    ],
)
def test_bad_input_is_named(run, capsys, file, change, message):
    path = run / file
    data = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(data))
    with pytest.raises(DataError, match=message):
        read_results(run)
    with pytest.raises(SystemExit) as ended:
        main([str(run)])
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert file in printed and "Traceback" not in printed


def test_answers_of_another_number_of_decisions_are_refused(run):
    with np.load(run / "held_out.npz") as found:
        arrays = dict(found)
    arrays["arm_plain"] = arrays["arm_plain"][:-1]
    np.savez(run / "held_out.npz", **arrays)
    with pytest.raises(DataError, match="do not fit"):
        read_results(run)


def test_a_fact_without_a_value_and_a_plot_of_one_point_are_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(run), "--fact", "commit"])
    assert "KEY=VALUE" in capsys.readouterr().err
    arms = summarise(read_results(run), {})["arms"]
    with pytest.raises(DataError, match="needs two"):
        write_plot({"plain": arms["plain"]}, tmp_path / "one.svg")

# SPDX-License-Identifier: Apache-2.0
"""Command line: one JSON object on stdout, exit codes, and no heavy import before it is needed."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from nvila_ros import cli
from nvila_ros.errors import ConfigError

HEAVY = ("torch", "mujoco", "rclpy", "numpy", "PIL", "cv2", "scipy")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nvila_ros.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def exit_code(monkeypatch, *arguments: str) -> int:
    """Runs `nvila` in this process."""
    monkeypatch.setattr(sys, "argv", ["nvila", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0


def test_importing_the_command_line_is_light():
    code = f"import sys, nvila_ros.cli; sys.exit(any(name in sys.modules for name in {HEAVY}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(("text", "seeds"), [("3:6", (3, 4, 5)), ("7", (7,))])
def test_seed_ranges_exclude_their_end(text, seeds):
    assert cli.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a:b", "5:5", "9:3", "-1:2", "1:2:3", "0:1000000"])
def test_bad_seed_ranges_are_refused(text):
    with pytest.raises(ConfigError, match="seeds are"):
        cli.parse_seeds(text)


def test_simulate_prints_exactly_one_object():
    done = run("simulate", "--seeds", "900000", "--policy", "oracle", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["success_rate"] == 1.0 and result["num_episodes"] == 1
    keys = {
        "spl", "navigation_error_m", "oracle_success_rate", "ndtw", "sdtw", "trajectory_length_m",
        "collision_rate", "intervals", "episodes",
    }  # fmt: skip
    assert keys <= result.keys()
    assert result["episodes"][0]["seed"] == 900_000 and result["episodes"][0]["success"]


def test_simulate_prints_a_table(monkeypatch, capsys):
    assert exit_code(monkeypatch, "simulate", "--seeds", "900000", "--policy", "oracle") == 0
    assert "success rate" in capsys.readouterr().out


def test_unusable_input_is_named_on_stderr(monkeypatch, capsys, tmp_path):
    arguments = ("simulate", "--seeds", "1", "--model", str(tmp_path / "absent"), "--json")
    assert exit_code(monkeypatch, *arguments) == cli.EXIT_INPUT
    streams = capsys.readouterr()
    assert streams.out == "" and "absent" in streams.err


def test_wrong_usage_has_its_own_code(monkeypatch):
    assert exit_code(monkeypatch, "simulate") == 2
    assert exit_code(monkeypatch, "simulate", "--seeds", "1", "--control", "mute") == 2


def test_ask_refuses_what_is_no_picture(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_text("no picture")
    for path, message in ((picture, "no readable picture"), (tmp_path / "x.png", "does not exist")):
        assert exit_code(monkeypatch, "ask", "model", str(path), "What?") == cli.EXIT_INPUT
        assert message in capsys.readouterr().err


def test_ask_answers_as_one_object(monkeypatch, capsys, tmp_path, tiny_folder):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    arguments = ("ask", str(tiny_folder), str(picture), str(picture), "What is this?", "--json")
    assert exit_code(monkeypatch, *arguments, "--max-new-tokens", "4") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_images"] == 2 and isinstance(result["answer"], str)


def test_a_model_drives_blind_and_deaf(monkeypatch, capsys, tiny_folder):
    for control in ("none", "blind", "deaf"):
        arguments = ("--seeds", "900000", "--model", str(tiny_folder), "--control", control)
        limits = ("--max-decisions", "2", "--json")
        assert exit_code(monkeypatch, "simulate", *arguments, *limits) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["control"] == control and result["mean_decisions"] <= 2


def test_render_writes_the_pictures_it_names(monkeypatch, capsys, tmp_path):
    assert exit_code(monkeypatch, "render", "--seed", "3", "--output", str(tmp_path), "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert len(files) >= 4 and {path.name for path in tmp_path.iterdir()} == {
        file.rsplit("/", 1)[-1] for file in files
    }


def test_version(monkeypatch, capsys):
    assert exit_code(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip()

# SPDX-License-Identifier: Apache-2.0
"""Commands about checkpoints, run in this process."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from nvila_ros import cli

CONFORMANCE = Path(__file__).parent / "data" / "conformance"


@pytest.fixture
def nvila(monkeypatch, capsys):
    """Runs `nvila`; returns exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nvila", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (40, 30), (40 * index, 0, 0)).save(folder / f"{index}.png")
    return folder


def test_ask_about_a_video(nvila, tiny_folder, frames):
    limits = ("--frames", "3", "--max-new-tokens", "4", "--json")
    code, out, _ = nvila("ask", tiny_folder, "What happens?", "--video", frames, *limits)
    result = json.loads(out)
    assert code == 0 and result["frame_indices"] == [0, 2, 4]
    assert isinstance(result["answer"], str) and result["question"] == "What happens?"


def test_ask_about_nothing_but_text(nvila, tiny_folder):
    code, out, _ = nvila("ask", tiny_folder, "Who are you?", "--max-new-tokens", "2", "--json")
    assert code == 0 and json.loads(out)["num_images"] == 0


def test_ask_refuses_what_does_not_go_together(nvila, tiny_folder, frames):
    for arguments, message in (
        ((frames / "0.png", "What?", "--video", frames), "one or the other"),
        (("What?", "--fps", "2"), "--video"),
        (("What?", "--video", "absent.mp4"), "does not exist"),
        (("What?", "--video", frames, "--fps", "2"), "no rate"),
    ):
        code, out, errors = nvila("ask", tiny_folder, *arguments)
        assert code == cli.EXIT_INPUT and out == "" and message in errors


def test_conformance_passes_and_prints_one_object(nvila):
    code, out, _ = nvila("conformance", CONFORMANCE / "lite", "--json")
    result = json.loads(out)
    assert code == 0 and result["passed"]
    cases = {case["case"]: case for case in result["folders"][str(CONFORMANCE / "lite")]}
    assert cases["one_500x300"]["tiles_equal"] and cases["text"]["logits_difference"] < 1e-4


def test_conformance_shows_a_difference_and_exits_with_its_own_code(nvila, monkeypatch):
    from nvila_ros.evaluation import conformance

    monkeypatch.setattr(conformance, "LOGITS_TOLERANCE", -1.0)
    code, out, _ = nvila("conformance", CONFORMANCE / "lite")
    assert code == 6 and "FAIL" in out


def test_conformance_without_answers_names_the_file(nvila, tiny_folder):
    code, _, errors = nvila("conformance", tiny_folder)
    assert code == cli.EXIT_INPUT and "cases.json" in errors


def test_inspect_prints_tables_or_one_object(nvila, tiny_folder):
    code, out, _ = nvila("inspect", tiny_folder, "--json", "--frames", "4")
    assert code == 0 and json.loads(out)["num_frames"] == 4
    code, out, _ = nvila("inspect", tiny_folder)
    assert code == 0 and "vision_tower" in out and "KV cache" in out
    assert "at most" in out  # text is counted as long as it may be


def test_convert_names_what_it_wrote(nvila, tiny_folder, tmp_path):
    arguments = ("convert", tiny_folder, tmp_path / "new", "--dtype", "float16", "--json")
    code, out, _ = nvila(*arguments)
    assert code == 0 and len(json.loads(out)["files"]) == 3
    code, _, errors = nvila(*arguments)
    assert code == cli.EXIT_INPUT and "exists already" in errors

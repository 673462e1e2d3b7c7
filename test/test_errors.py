# SPDX-License-Identifier: Apache-2.0
"""Messages name only what there is: extras of setup.py, installed from this repository."""

import re
from pathlib import Path

import pytest

from nvila_ros import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path for room in ("nvila_ros", "models", "kernels", "training") for path in
    sorted((ROOT / room).rglob("*.py"))
]  # fmt: skip
EXTRAS = re.findall(r'^        "([a-z-]+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("has_own_pins", [False, True])
def test_the_hint_installs_from_the_repository_with_its_pins(monkeypatch, tmp_path, has_own_pins):
    monkeypatch.setattr(errors, "_REPOSITORY", tmp_path)
    if has_own_pins:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "constraints.txt").touch()
    pins = ".venv/constraints.txt" if has_own_pins else "constraints.txt"
    command = f".venv/bin/pip install -c {pins} -e '.[record]'"
    assert errors.install_hint("record").endswith(command)


def test_every_hint_names_an_extra_of_this_package():
    named = set()
    for path in SOURCES:
        named |= set(re.findall(r"""install_hint\(["']([^"']+)["']""", path.read_text()))
    assert {"record", "dashboard", "train", "export"} <= named <= set(EXTRAS)


def test_nothing_is_to_be_installed_from_a_release_that_does_not_exist():
    found = [str(path) for path in SOURCES if "nvila_ros[" in path.read_text()]
    assert not found

# SPDX-License-Identifier: Apache-2.0
"""The doctor: each finding that is not good says what to do; one broken check hides no other."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from nvila_ros import cli
from nvila_ros.cli_options import NANO_FOLDER
from nvila_ros.doctor import examine, findings, machine_checks, ros_checks
from nvila_ros.doctor.findings import DoctorSettings, Finding, Verdict

SETTINGS = DoctorSettings(model=NANO_FOLDER)
Usage = namedtuple("Usage", "total used free")


def is_helpful(finding):
    return finding.verdict is not Verdict.GOOD and len(finding.advice) > 10


def test_this_machine_has_what_tests_need():
    for check in (machine_checks.check_python, machine_checks.check_packages):
        assert check(SETTINGS).verdict is Verdict.GOOD
    assert machine_checks.check_checkpoint(SETTINGS).verdict is Verdict.GOOD


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    finding = machine_checks.check_python(SETTINGS)
    assert is_helpful(finding) and "make setup PYTHON=" in finding.advice


def test_a_missing_package_is_named(monkeypatch):
    find = machine_checks.importlib.util.find_spec
    monkeypatch.setattr(
        machine_checks.importlib.util,
        "find_spec",
        lambda name: None if name == "cv2" else find(name),
    )
    finding = machine_checks.check_packages(SETTINGS)
    assert is_helpful(finding) and "cv2" in finding.found


def test_a_full_disk_is_bad(monkeypatch):
    for free_gb, verdict in ((0.5, Verdict.BAD), (5, Verdict.NOTE), (50, Verdict.GOOD)):
        usage = Usage(0, 0, free_gb * 1e9)
        monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path, u=usage: u)
        assert machine_checks.check_disk(SETTINGS).verdict is verdict


def test_checkpoints_that_cannot_drive_are_named(tmp_path):
    def look(folder):
        finding = machine_checks.check_checkpoint(DoctorSettings(model=folder))
        assert finding.verdict is Verdict.BAD and is_helpful(finding)
        return finding.found

    assert "absent" in look(tmp_path / "absent")
    copy = tmp_path / "copy"
    shutil.copytree(NANO_FOLDER, copy)
    weights = copy / "llm" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])  # as a download that broke off
    assert "truncated" in look(copy)
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in look(copy)
    weights.unlink()
    assert "model.safetensors" in look(copy)


def test_what_was_not_asked_for_is_left_out(monkeypatch):
    def forbidden(*_):
        raise AssertionError("ROS was looked at")

    monkeypatch.setattr(machine_checks, "check_graphics", lambda _: Finding("g", Verdict.GOOD, ""))
    for name in ("_probe", "check_ros"):
        monkeypatch.setattr(ros_checks, name, forbidden)
    settings = DoctorSettings(model=NANO_FOLDER, needs_ros=False)
    left = [item for item in examine.examine(settings) if item.verdict is Verdict.LEFT_OUT]
    assert [item.name for item in left] == ["ROS 2", "discovery", "camera"]
    assert {item.found for item in left} == {"not asked for"}


def test_a_torch_for_the_cpu_beside_a_gpu_is_replaced_by_its_own_version(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "_driver_version", lambda: "580.65")
    advice = machine_checks.check_gpu(SETTINGS).advice
    # Without the +cu130 pip takes 2.13.0+cpu for what is wanted.
    assert ".venv/bin/pip install 'torch==2.13.0+cu130' --index-url" in advice


@pytest.mark.parametrize("needs, verdict", [(True, Verdict.BAD), (False, Verdict.NOTE)])
def test_without_a_gpu_it_depends_on_whether_one_is_needed(monkeypatch, needs, verdict):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = DoctorSettings(model=NANO_FOLDER, needs_gpu=needs)
    for driver in (None, "535.10"):
        monkeypatch.setattr(machine_checks, "_driver_version", lambda d=driver: d)
        finding = machine_checks.check_gpu(settings)
        assert finding.verdict is verdict and is_helpful(finding)


@pytest.mark.parametrize(
    "answer, verdict, word",
    [
        ({"publishers": 0, "others": ["/a"], "count": 0}, Verdict.NOTE, "/a"),
        ({"publishers": 1, "count": 1, "profile": "f.xml"}, Verdict.BAD, "published, but 1"),
        ({"publishers": 1, "count": 3, "rate_hz": 1.0, "size": "8x8"}, Verdict.NOTE, "1.0 Hz"),
        ({"publishers": 1, "count": 30, "rate_hz": 10.0, "size": "8x8"}, Verdict.GOOD, "10.0 Hz"),
        ({"error": "no answer"}, Verdict.LEFT_OUT, "no answer"),
    ],
)
def test_cameras(monkeypatch, answer, verdict, word):
    monkeypatch.setattr(ros_checks, "_probe", lambda *_: answer)
    finding = ros_checks.check_camera(SETTINGS)
    assert finding.verdict is verdict and word in finding.found
    assert finding.verdict in (Verdict.GOOD, Verdict.LEFT_OUT) or is_helpful(finding)


def test_processes_that_do_not_find_each_other(monkeypatch):
    monkeypatch.setattr(ros_checks, "_probe", lambda *_: {"heard": False, "seconds": 10.0})
    assert is_helpful(ros_checks.check_discovery(SETTINGS))
    monkeypatch.setattr(ros_checks, "_probe", lambda *_: {"error": "librmw is missing"})
    assert "librmw" in ros_checks.check_discovery(SETTINGS).found


def test_a_probe_that_hangs_or_dies_is_an_answer(monkeypatch):
    monkeypatch.setattr(findings, "PROBE_TIMEOUT_S", 0.2)
    assert findings.run_quietly([sys.executable, "-c", "import time; time.sleep(9)"]) is None
    died = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no rmw")
    monkeypatch.setattr(ros_checks, "run_quietly", lambda *_: died)
    assert "no rmw" in ros_checks._probe("discovery")["error"]
    monkeypatch.setattr(ros_checks, "run_quietly", lambda *_: None)
    assert "no answer" in ros_checks._probe("discovery")["error"]


def test_a_check_that_throws_hides_no_other(monkeypatch):
    def broken(_settings):
        raise RuntimeError("the driver is upside down")

    monkeypatch.setattr(machine_checks, "check_gpu", broken)
    monkeypatch.setattr(machine_checks, "check_graphics", lambda _: Finding("g", Verdict.GOOD, ""))
    monkeypatch.setattr(ros_checks, "_probe", lambda *_: {"error": "left out here"})
    found = {item.name: item for item in examine.examine(SETTINGS)}
    assert "upside down" in found["GPU"].found and found["disk"].verdict is not Verdict.LEFT_OUT
    assert examine.exit_code(list(found.values())) == 1
    assert examine.exit_code([Finding("x", Verdict.NOTE, "", "")]) == 0


def test_command_prints_one_object_and_ends_with_its_verdict(monkeypatch, capsys):
    rows = [Finding("disk", Verdict.BAD, "0 GB free", "make room")]
    monkeypatch.setattr(examine, "examine", lambda _settings: iter(rows))
    for arguments in (["--json"], []):
        monkeypatch.setattr(sys, "argv", ["nvila", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        output = capsys.readouterr().out
        if arguments:
            assert json.loads(output)["findings"][0]["advice"] == "make room"
        else:
            assert "0 GB free" in output and "make room" in output

# SPDX-License-Identifier: Apache-2.0
"""Options of all commands: each is explained, and what is the same has the same names."""

import sys

import pytest
import typer

from nvila_ros import cli, ros_environment

COMMAND = typer.main.get_command(cli.app)


def leaves(command, name=""):
    """Every command that does something, by its full name."""
    if not hasattr(command, "commands"):
        return {name: command}
    found = {}
    for word, child in command.commands.items():
        found |= leaves(child, f"{name} {word}".strip())
    return found


LEAVES = leaves(COMMAND)


def options(command):
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nvila", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0


@pytest.mark.parametrize("name", LEAVES)
def test_commands_and_options_are_explained(name):
    assert len(LEAVES[name].help or "") > 10
    bare = [option.opts for option in options(LEAVES[name]) if not option.help]
    assert not bare, f"nvila {name}: no help for {bare}"


def test_groups_and_the_version_are_explained():
    assert "speed" in COMMAND.commands["bench"].help
    assert all(option.help for option in options(COMMAND))


@pytest.mark.parametrize(
    "name, either, other",
    [
        ("dashboard", "--image", "--image-topic"),
        ("dashboard", "--odom", "--odom-topic"),
        ("record", "--image", "--image-topic"),
        ("record", "--odom", "--odom-topic"),
        ("record", "--rate", "--image-rate"),
        ("replay", "--odom", "--odom-topic"),
        ("doctor", "--image", "--image-topic"),
        ("data from-bag", "--image", "--image-topic"),
        ("simulate", "--seed", "--seeds"),
        ("data generate", "--seed", "--seeds"),
        *[(name, "--out", "--output") for name in (
            "demo", "render", "record", "export", "quantize", "merge", "evaluate",
            "data shard", "data generate", "data score", "data prune", "data from-bag",
        )],
    ],
)  # fmt: skip
def test_one_thing_goes_by_the_same_names_everywhere(name, either, other):
    assert any({either, other} <= set(option.opts) for option in options(LEAVES[name]))


@pytest.mark.parametrize("name", ["ask", "replay", "evaluate", "quantize", "data score"])
def test_a_gpu_is_used_where_there_is_one(name):
    device = next(option for option in options(LEAVES[name]) if "--device" in option.opts)
    assert device.default == "auto"


def test_a_seed_below_zero_is_wrong_usage(monkeypatch, capsys):
    assert exit_code(monkeypatch, "demo", "--seed", "-1") == 2
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--output"),
        ("render", "--seed", "3", "--output"),
        ("simulate", "--seeds", "900000", "--policy", "oracle", "--report"),
        ("simulate", "--seeds", "900000", "--policy", "oracle", "--plans"),
        ("data", "generate", "--seeds", "1", "--out"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    words, monkeypatch, capsys, tmp_path
):
    def forbidden(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr("nvila_ros.nodes.demo.run_demo", forbidden)
    monkeypatch.setattr("nvila_ros.evaluation.simulate.simulate", forbidden)
    monkeypatch.setattr("nvila_ros.sim.pictures.save_pictures", forbidden)
    monkeypatch.setattr("nvila_ros.training.data.generate.generate", forbidden)
    (tmp_path / "file").touch()
    assert exit_code(monkeypatch, *words, tmp_path / "file" / "x") == cli.EXIT_INPUT
    told = capsys.readouterr().err
    assert str(tmp_path / "file" / "x") in told and "cannot be written" in told


def test_a_place_that_is_refused_later_is_named_and_a_defect_is_not_hidden(capsys):
    with pytest.raises(SystemExit) as stopped, cli.exit_codes():
        raise PermissionError(13, "Permission denied", "/data/x")
    assert stopped.value.code == cli.EXIT_INPUT
    assert "nvila: /data/x: Permission denied" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError), cli.exit_codes():
        raise FileNotFoundError(2, "No such file or directory", "templates/page.html")


@pytest.mark.parametrize("words", [("record",), ("dashboard",), ("demo",)])
def test_without_ros_each_command_says_the_same(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    find = ros_environment.importlib.util.find_spec
    monkeypatch.setattr(
        ros_environment.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "rclpy" else find(name, *rest),
    )
    assert exit_code(monkeypatch, *words) == cli.EXIT_SYSTEM_LIBRARY
    told = capsys.readouterr().err
    assert told.startswith("nvila: rclpy, ROS 2's Python library") and "make setup" in told


def test_an_open_address_is_refused_in_our_own_words(monkeypatch, capsys):
    pytest.importorskip("rclpy")
    pytest.importorskip("nicegui")
    assert exit_code(monkeypatch, "dashboard", "--host", "0.0.0.0") == cli.EXIT_INPUT
    told = capsys.readouterr().err
    assert told.startswith("nvila: host") and "NVILA_DASHBOARD_TOKEN=" in told


def test_record_takes_a_lidar_only_where_one_is_named(monkeypatch):
    recorder = pytest.importorskip("nvila_ros.nodes.recorder_node")
    given = []
    monkeypatch.setattr(recorder, "main", lambda arguments: given.append(arguments) or 0)
    assert exit_code(monkeypatch, "record") == 0
    assert exit_code(monkeypatch, "record", "--scan", "/lidar", "--odom-topic", "/o") == 0
    assert "scan:=false" in given[0] and not any("/lidar" in word for word in given[0])
    assert {"scan:=true", "scan:=/lidar", "odom:=/o"} <= set(given[1])


@pytest.mark.parametrize("family", ["nano", "nvila-8b"])
def test_recipes_are_shown_within_80_columns(family, monkeypatch, capsys):
    assert exit_code(monkeypatch, "train", "--all", family, "--show") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  learns") for line in lines) == 7
    assert any(line.startswith("    paper") for line in lines)


@pytest.mark.parametrize("words, device", [((), "cpu"), (("--ray", "auto", "--gpus", "1"), "cuda")])
def test_scoring_chooses_its_device_where_it_runs(words, device, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # here, not in the cluster

    class SeenError(Exception):
        """The job that was asked for."""

    def look(sources, rows_per_unit):
        return ["one"]

    def run_units(job, *_):
        raise SeenError(job.device)

    monkeypatch.setattr("nvila_ros.training.delta_loss_report.score_units", look)
    monkeypatch.setattr("nvila_ros.training.scale.run_units", run_units)
    rows = tmp_path / "rows.json"
    rows.write_text("[]")
    arguments = ("data", "score", rows, "--format", "llava", "--small", "s", "--large", "l")
    monkeypatch.setattr(
        sys, "argv", list(map(str, ("nvila", *arguments, "--out", tmp_path, *words)))
    )
    with pytest.raises(SeenError, match=device):
        cli.main()

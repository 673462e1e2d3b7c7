# SPDX-License-Identifier: Apache-2.0
"""Units of work on processes of this machine."""

from collections import Counter
from pathlib import Path

import pytest
from scale_units import SMALL, UNITS, Squares, files_of

from nvila_ros.errors import ConfigError, DataError, NvilaError
from nvila_ros.training.data.generate import GenerateJob, generate
from nvila_ros.training.scale import ScaleSettings, run_units, write_atomically


def test_every_unit_is_done_once_and_not_again(tmp_path: Path) -> None:
    heard: list[tuple[str, bool]] = []
    assert run_units(
        Squares(), UNITS[:4], tmp_path, None, lambda u, old: heard.append((u.name, old))
    )
    done = run_units(Squares(), UNITS, tmp_path, None, lambda u, old: heard.append((u.name, old)))
    assert done == 2
    assert Counter(old for _, old in heard) == {False: 6, True: 4}
    assert [(tmp_path / f"u{n}.txt").read_text() for n in range(6)] == [
        "0",
        "1",
        "4",
        "9",
        "16",
        "25",
    ]


def test_a_unit_whose_proof_is_missing_is_done_again(tmp_path: Path) -> None:
    run_units(Squares(), UNITS, tmp_path)
    (tmp_path / "u3.txt").unlink()
    assert run_units(Squares(), UNITS, tmp_path) == 1


def test_a_bad_unit_is_named_and_the_others_stay(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unit u4: this number is bad"):
        run_units(Squares(bad=(4,)), UNITS, tmp_path)
    assert not (tmp_path / "u4.txt").exists() and (tmp_path / "u3.txt").exists()
    assert run_units(Squares(), UNITS, tmp_path) == 2


def test_two_units_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names must differ"):
        run_units(Squares(), [UNITS[0], UNITS[0]], tmp_path)


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nvila_ros.training.scale.os.fsync", full)
    with pytest.raises(NvilaError, match="No space left on device"):
        write_atomically(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.slow
def test_processes_make_what_one_process_makes(tmp_path: Path) -> None:
    job = GenerateJob(seeds=(100, 101, 102), seeds_per_unit=1, options=SMALL)
    for name, workers in (("one", 1), ("two", 2)):
        generate(job, tmp_path / name, ScaleSettings(num_workers=workers))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")

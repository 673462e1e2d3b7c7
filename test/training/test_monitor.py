# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nvila_ros.training.monitor import Monitor, StepReport, cut_log, read_log

CPU = torch.device("cpu")


def report(step: int, **changed) -> StepReport:
    values = {
        "step": step,
        "progress": 0.5,
        "loss": 2.5,
        "samples": 8 * step,
        "step_samples": 8,
        "step_tokens": 1000,
        "step_targets": 100,
        "gradient_norm": 1.0,
        "rate_factor": 0.3,
        "wall_s": 2.0,
        "data_wait_s": 0.1,
        "flops": 4e12,
    }
    return StepReport(**{**values, **changed})


def test_speeds_are_per_second_of_the_step() -> None:
    speeds = report(1).speeds(CPU, num_ranks=1)
    assert speeds == pytest.approx(
        {"samples_per_s": 4.0, "tokens_per_s": 500.0, "data_wait_share": 0.05, "tflops": 2.0}
    )


def test_mfu_is_over_the_peak_of_all_cards(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    speeds = report(1, flops=2 * 2 * 989e12).speeds(torch.device("cuda"), num_ranks=2)
    assert speeds["mfu"] == pytest.approx(1.0)


def test_steps_are_logged_as_lines_and_curves(tmp_path: Path) -> None:
    with Monitor(tmp_path, "toy", is_main=True, device=CPU, num_ranks=1) as monitor:
        for step in (1, 2, 3):
            monitor.log(report(step))
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    names = {"loss", "samples_per_s", "tokens_per_s", "data_wait_share", "gradient_norm"}
    assert names <= set(curves.Tags()["scalars"])
    assert [point.step for point in curves.Scalars("loss")] == [1, 2, 3]


def test_a_log_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    with Monitor(tmp_path, "toy", is_main=True, device=CPU, num_ranks=1) as monitor:
        monitor.log(report(1))
        monitor.log(report(2))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    cut_log(tmp_path, step=1)
    assert [line["step"] for line in read_log(tmp_path)] == [1]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Monitor(tmp_path / "none", "toy", is_main=False, device=CPU, num_ranks=2) as monitor:
        monitor.log(report(1))
        monitor.note("silent")
    assert not (tmp_path / "none").exists()
    assert read_log(tmp_path / "none") == []


def test_a_log_without_room_does_not_end_the_run(tmp_path: Path, monkeypatch) -> None:
    with Monitor(tmp_path, "toy", is_main=True, device=CPU, num_ranks=1) as monitor:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(monitor, "_write", full)
        monitor.log(report(1))

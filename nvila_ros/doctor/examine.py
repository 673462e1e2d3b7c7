# SPDX-License-Identifier: Apache-2.0
"""All checks in turn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from nvila_ros.doctor import machine_checks, ros_checks
from nvila_ros.doctor.findings import DoctorSettings, Finding, Verdict

EXIT_PROBLEM = 1


def examine(settings: DoctorSettings) -> Iterator[Finding]:
    """Every check in turn; one that throws is a finding, not an end."""
    checks: list[tuple[str, Callable[[DoctorSettings], Finding]]] = [
        ("Python", machine_checks.check_python),
        ("packages", machine_checks.check_packages),
        ("GPU", machine_checks.check_gpu),
        ("graphics", machine_checks.check_graphics),
        ("disk", machine_checks.check_disk),
        ("checkpoint", machine_checks.check_checkpoint),
    ]
    for name, check in checks:
        yield _guarded(name, check, settings)
    if not settings.needs_ros:
        for name in ("ROS 2", "discovery", "camera"):
            yield Finding(name, Verdict.LEFT_OUT, "not asked for")
        return
    yield _guarded("ROS 2", ros_checks.check_ros, settings)
    if importlib.util.find_spec("rclpy") is None:
        for name in ("discovery", "camera"):
            yield Finding(name, Verdict.LEFT_OUT, "there is no rclpy")
        return
    yield _guarded("discovery", ros_checks.check_discovery, settings)
    yield _guarded("camera", ros_checks.check_camera, settings)


def exit_code(findings: list[Finding]) -> int:
    """0 when nothing is bad."""
    return EXIT_PROBLEM if any(item.verdict is Verdict.BAD for item in findings) else 0


def _guarded(
    name: str, check: Callable[[DoctorSettings], Finding], settings: DoctorSettings
) -> Finding:
    try:
        return check(settings)
    except Exception as error:  # whatever is broken on this machine must not hide the rest
        advice = "this check failed itself; please report it with this line"
        return Finding(name, Verdict.BAD, f"{type(error).__name__}: {error}", advice)

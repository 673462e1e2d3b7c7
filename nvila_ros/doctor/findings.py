# SPDX-License-Identifier: Apache-2.0
"""What a check tells, and how a check asks another process."""

from __future__ import annotations

import enum
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROBE_TIMEOUT_S = 20.0


class Verdict(str, enum.Enum):
    """How a check went."""

    GOOD = "good"
    NOTE = "note"  # works, with something to know
    BAD = "bad"
    LEFT_OUT = "left out"  # could not be looked at, or was not asked for


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and what to do unless it is good."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class DoctorSettings:
    """What to look at."""

    model: Path
    image_topic: str = "image"
    camera_seconds: float = 3.0
    needs_ros: bool = True  # False leaves ROS 2, discovery and camera out
    needs_gpu: bool = False
    output: Path = Path()


def run_quietly(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """The finished process, None where it could not be started or gave no answer in time."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None

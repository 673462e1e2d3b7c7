# SPDX-License-Identifier: Apache-2.0
"""What may be typed, and how often."""

import pytest

from nvila_ros.dashboard.commands import BURST, INTERVAL_S, MAX_CHARACTERS, InstructionGate
from nvila_ros.errors import InstructionError


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def gate(clock):
    return InstructionGate(lambda: clock[0])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("go " * 200, f"at most {MAX_CHARACTERS}"),
        ("Go <image> there", "token"),
        ("Go \x00", "control character"),
    ],
)
def test_what_cannot_be_used_is_refused_and_costs_nothing(gate, text, words):
    for _ in range(2 * BURST):
        with pytest.raises(InstructionError, match=words):
            gate.check(text)
    assert gate.check("Go to the red chair.") == "Go to the red chair."


def test_too_many_are_refused_until_time_has_passed(gate, clock):
    for _ in range(BURST):
        gate.check("Go.")
    with pytest.raises(InstructionError, match="too many"):
        gate.check("Go.")
    clock[0] += INTERVAL_S
    gate.check("Go.")
    with pytest.raises(InstructionError, match="too many"):
        gate.check("Go.")
    clock[0] += 1000.0
    for _ in range(BURST):
        gate.check("Go.")
    with pytest.raises(InstructionError, match="too many"):
        gate.check("Go.")

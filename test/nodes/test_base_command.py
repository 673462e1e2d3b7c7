# SPDX-License-Identifier: Apache-2.0
"""A simulated base keeps to its motors, and to commands that are renewed."""

import math

import pytest

from nvila_ros.nodes.base_command import MAX_FORWARD_M_S, MAX_TURN_RAD_S, BaseCommand
from nvila_ros.safety import Velocity


def test_a_command_counts_until_its_time_is_over():
    command = BaseCommand(timeout_s=0.5)
    assert command.at(0.0) == Velocity.ZERO
    command.give(Velocity(0.3, -0.2), 10.0)
    assert command.at(10.5) == Velocity(0.3, -0.2)
    assert command.at(10.6) == Velocity.ZERO
    command.give(Velocity(0.3, 0.0), 11.0)
    command.clear()
    assert command.at(11.0) == Velocity.ZERO


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_is_no_motion(bad):
    command = BaseCommand(timeout_s=0.5)
    for velocity in (Velocity(bad, 0.1), Velocity(0.1, bad)):
        command.give(Velocity(0.3, 0.0), 1.0)
        command.give(velocity, 1.1)
        assert command.at(1.1) == Velocity.ZERO


def test_the_motors_have_limits():
    command = BaseCommand(timeout_s=0.5)
    command.give(Velocity(9.0, -9.0), 0.0)
    assert command.at(0.1) == Velocity(MAX_FORWARD_M_S, -MAX_TURN_RAD_S)

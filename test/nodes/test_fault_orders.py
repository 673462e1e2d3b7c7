# SPDX-License-Identifier: Apache-2.0
"""The fault table's second half: orders, parameters and clocks that end a motion, or must not."""

import math
import time

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from std_msgs.msg import Bool

pytestmark = pytest.mark.ros

COMMAND_BOUND_S, EMERGENCY_BOUND_S = 0.25, 0.10


def test_emergency_stop(world, turning):
    turning.start()

    def inject():
        world.emergency.publish(Bool(data=True))

    fault = "emergency stop during motion"
    turning.judge(fault, EMERGENCY_BOUND_S, inject, "emergency_stop", "EMERGENCY_STOP")
    world.instruct()  # refused
    world.emergency.publish(Bool(data=False))  # clears nothing
    time.sleep(0.3)
    assert world.state["state"] == "emergency_stop" and world.commands[-1] == (0.0, 0.0)
    assert world.call("clear_emergency_stop").success
    assert not world.call("clear_emergency_stop").success
    turning.goes_on(anew=True)


@pytest.mark.parametrize("service", ["cancel", "pause"])
def test_services_stop(world, turning, service):
    turning.start()
    word = {"cancel": "CANCELED", "pause": "paused"}[service]
    phase = {"cancel": "idle", "pause": "paused"}[service]

    def inject():
        assert world.call(service).success
        return time.monotonic()

    turning.judge(f"service {service}", COMMAND_BOUND_S, inject, phase, word)
    if service == "pause":
        assert world.call("resume").success
    turning.goes_on(anew=service == "cancel")


def test_deactivate_stops(world, turning):
    turning.start()

    def inject():
        assert world.change_state("deactivate")
        return time.monotonic()

    turning.judge("lifecycle deactivate", COMMAND_BOUND_S, inject, "inactive", "CANCELED")
    assert world.change_state("activate")
    turning.goes_on(anew=True)


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("motion__max_forward_m_s", math.nan, "range"),
        ("motion__max_forward_m_s", -3.0, "range"),
        ("motion__max_turn_rad_s", 1e9, "range"),
        ("safety__command_timeout_s", "soon", "type"),
        ("model_path", "/elsewhere", "unconfigured"),
        ("autostart", False, "read-only"),
        ("motion__max_sped", 1.0, "declared"),
    ],
)
def test_a_nonsense_parameter_is_refused_and_changes_nothing(world, turning, name, value, reason):
    turning.start()
    (refusal,) = world.set_parameters(**{name: value})
    assert reason in refusal.replace("read only", "read-only"), refusal
    assert world.state["state"] != "fault"
    turning.goes_on()


@pytest.mark.parametrize("jump_s", [-30.0, 3600.0])
def test_clock_jumps_under_use_sim_time(world, turning, jump_s):
    turning.start(use_sim_time=True, max_failed_primitives=1, remaps={"/clock": "world_clock"})

    def inject():
        world.clock_shift_s = jump_s

    word = "clock went back" if jump_s < 0 else "timeout"
    fault = f"clock jumps by {jump_s:+.0f} s"
    turning.judge(fault, COMMAND_BOUND_S, inject, "idle", word)
    turning.goes_on(anew=True)

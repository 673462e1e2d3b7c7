# SPDX-License-Identifier: Apache-2.0
"""The page: one object per open browser, which sends what has changed a few times a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nicegui import ui

from nvila_ros.dashboard.commands import Commands, InstructionGate
from nvila_ros.dashboard.looks import CSS, PHASE_COLOURS, card
from nvila_ros.dashboard.page_seeing import (
    ChartPart,
    DecisionPart,
    HealthPart,
    MapPart,
    PicturePart,
)
from nvila_ros.dashboard.page_steering import (
    InstructionPart,
    MotionPart,
    SimulatorPart,
    SteeringPart,
)
from nvila_ros.dashboard.state import DashboardState

REFRESH_PERIOD_S = 0.1  # the camera's 10 Hz; the rest is looked at in the same round


class Part(Protocol):
    """Something on the page that shows `watched` parts of the state."""

    @property
    def watched(self) -> tuple[str, ...]: ...

    def show(self) -> None: ...


class DashboardPage:
    """Builds the page for one browser and keeps it up to date until that is closed."""

    def __init__(self, state: DashboardState, commands: Commands, gate: InstructionGate) -> None:
        self._state, self._commands = state, commands
        self._shown: dict[int, Sequence[int]] = {}
        ui.add_css(CSS)
        ui.colors(primary="#286edc", negative="#c8143c")
        self._parts: list[Part] = [HeaderPart(state, commands)]
        self._silence = ui.label(
            "No navigator is heard. Is it running, in the same ROS domain and namespace?"
        ).classes("silence")
        with ui.element("main").classes("board"):
            self._build(state, commands, gate)
        client = ui.context.client
        client.on_connect(lambda: state.watch(client.id, True))
        client.on_disconnect(lambda: state.watch(client.id, False))
        client.on_delete(lambda: state.watch(client.id, False))
        ui.timer(REFRESH_PERIOD_S, self.refresh)

    def _build(self, state: DashboardState, commands: Commands, gate: InstructionGate) -> None:
        with ui.element("div").classes("stack"), card("Camera and instruction"):
            self._parts += [PicturePart(state, "camera"), MotionPart(state)]
            steering = SteeringPart(state, commands, gate)
            self._parts += [steering, InstructionPart(state, steering.propose)]
        with ui.element("div").classes("stack"):
            self._parts += [DecisionPart(state), ChartPart(state)]
        with ui.element("div").classes("stack"):
            self._parts += [MapPart(state), SimulatorPart(state, commands, steering.propose)]
        with card("What the model saw").classes("whole"), ui.element("div").classes("frames"):
            self._parts.append(PicturePart(state, "strip"))
        self._parts.append(HealthPart(state))

    def refresh(self) -> None:
        """Sends what is new since the last time."""
        for number, part in enumerate(self._parts):
            versions = [self._state.version(name) for name in part.watched]
            if self._shown.get(number) != versions:
                self._shown[number] = versions
                part.show()
        self._silence.set_visibility(self._state.silent)


class HeaderPart:
    """Phase, result with its code, and the emergency stop, always in view."""

    watched = ("state",)

    def __init__(self, state: DashboardState, commands: Commands) -> None:
        self._state, self._commands = state, commands
        with ui.header().classes("top"):
            ui.label("nvila").classes("brand")
            self._phase = ui.badge("…").props('data-test="phase"')
            self._result = ui.label().classes("result").props('data-test="result"')
            ui.space()
            ui.button("Emergency stop", icon="front_hand", on_click=self._stop).props(
                'color=negative data-test="stop"'
            ).classes("stop")

    def show(self) -> None:
        """The last ~/state."""
        row = self._state.status
        phase = str(row.get("state", "…"))
        self._phase.set_text(phase.replace("_", " "))
        self._phase.props(f"color={PHASE_COLOURS.get(phase, 'grey-7')}")
        result, message = row.get("result"), row.get("message", "")
        code = f"{result} ({row.get('code')})" if result else ""
        self._result.set_text(": ".join(filter(None, (code, message))))

    def _stop(self) -> None:
        self._commands.emergency_stop()
        ui.notify("Emergency stop", type="negative")

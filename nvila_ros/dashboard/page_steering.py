# SPDX-License-Identifier: Apache-2.0
"""Parts of the page that steer: instruction, buttons, the simulator's apartments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from nicegui import ui

from nvila_ros.dashboard.commands import MAX_CHARACTERS, Answer, Commands, InstructionGate
from nvila_ros.dashboard.looks import card
from nvila_ros.dashboard.state import DashboardState
from nvila_ros.errors import InstructionError

ANSWER_TIMEOUT_S = 5.0
NUM_SHOWN = 6  # instructions


class MotionPart:
    """How fast the robot is, by its own odometry."""

    watched = ("motion",)

    def __init__(self, state: DashboardState) -> None:
        self._state = state
        with ui.row().classes("line"):
            self._label = ui.label().props('data-test="speed"')
            ui.label("measured by odometry").classes("faint")

    def show(self) -> None:
        """Both speeds; adding zero makes -0.00 a zero."""
        forward_m_s, turn_rad_s = self._state.speed
        self._label.set_text(f"{forward_m_s + 0.0:.2f} m/s, {turn_rad_s + 0.0:.2f} rad/s")


class SteeringPart:
    """Instruction box and the buttons of an episode."""

    watched = ("state",)

    def __init__(self, state: DashboardState, commands: Commands, gate: InstructionGate) -> None:
        self._state, self._commands, self._gate = state, commands, gate
        self._text = (
            ui.input("Where to go?", placeholder="Go to the red chair.")
            .props(f'outlined dense clearable maxlength={MAX_CHARACTERS} data-test="instruction"')
            .classes("wide")
            .on("keydown.enter", self._send)
        )
        with ui.row().classes("line"):
            ui.button("Go", icon="send", on_click=self._send).props('no-caps data-test="go"')
            for name, icon in (("pause", "pause"), ("resume", "play_arrow"), ("cancel", "close")):
                button = ui.button(icon=icon, on_click=caller(commands, f"navigator/{name}"))
                button.props(f'outline data-test="{name}" aria-label="{name}"').tooltip(name)
            clear = caller(commands, "navigator/clear_emergency_stop")
            self._clear = ui.button("Clear emergency stop", icon="lock_open", on_click=clear)
            self._clear.props('outline no-caps color=negative data-test="clear"')

    def show(self) -> None:
        """Clearing is offered where there is something to clear."""
        self._clear.set_visibility(self._state.status.get("state") == "emergency_stop")

    def propose(self, text: str) -> None:
        """Puts a text into the box; somebody still has to send it."""
        self._text.set_value(text)

    def _send(self) -> None:
        try:
            self._commands.instruct(self._gate.check(self._text.value or ""))
        except InstructionError as error:
            ui.notify(str(error), type="warning")
        else:
            self._text.set_value("")


class InstructionPart:
    """What the robot was told, newest first, and how it ended."""

    watched = ("instructions",)

    def __init__(self, state: DashboardState, propose: Callable[[str], None]) -> None:
        self._state, self._propose = state, propose
        self._rows = ui.column().classes("rows")

    def show(self) -> None:
        """A click puts an instruction back into the box."""
        self._rows.clear()
        with self._rows:
            for told in self._state.instructions()[:NUM_SHOWN]:
                row = ui.element("div").classes("told").tooltip(told.message)
                row.on("click", lambda _, text=told.text: self._propose(text))
                with row:
                    ui.label(told.text)
                    progress = "under way" if told.episode else "heard"
                    ui.label(told.result or progress).classes("faint outcome")


class SimulatorPart:
    """Another apartment, by its number or at random; hidden on a real robot."""

    watched = ("episode",)

    def __init__(
        self, state: DashboardState, commands: Commands, propose: Callable[[str], None]
    ) -> None:
        self._state, self._commands, self._propose = state, commands, propose
        with card("Simulator") as self._card:
            self._where = ui.label().props('data-test="apartment"')
            with ui.element("div").classes("told").on("click", self._suggest):
                self._suggestion = ui.label().props('data-test="suggestion"')
                ui.icon("content_paste_go", size="1.2rem").tooltip("put it into the box")
            with ui.row().classes("line"):
                self._seed = ui.number("Seed", min=0, max=999_999_999, precision=0)
                self._seed.props('outlined dense data-test="seed"').classes("seed")
                _button("Move there", "home", self._move, "move")
                _button("Random", "casino", self._random, "random")
                _button("Restart", "replay", caller(commands, "simulator/reset"), "reset")
        self._card.set_visibility(False)

    def show(self) -> None:
        """The simulator's episode."""
        row = self._state.episode
        self._card.set_visibility(bool(row))
        if row:
            self._where.set_text(f"Apartment {row['seed']}, {row['geodesic_m']:.1f} m to the goal")
            self._suggestion.set_text(row["instruction"])
            self._seed.set_value(row["seed"])

    def _suggest(self) -> None:
        self._propose(self._state.episode.get("instruction", ""))

    async def _move(self) -> None:
        if self._seed.value is None:
            ui.notify("give a seed: any whole number is an apartment", type="warning")
            return
        self._commands.call("navigator/cancel")
        await tell(self._commands.move_to_seed(int(self._seed.value)))

    async def _random(self) -> None:
        self._commands.call("navigator/cancel")
        await tell(self._commands.call("simulator/random_episode"))


def _button(text: str, icon: str, act: Callable[[], Awaitable[None]], name: str) -> None:
    ui.button(text, icon=icon, on_click=act).props(f'outline no-caps dense data-test="{name}"')


def caller(commands: Commands, service: str) -> Callable[[], Awaitable[None]]:
    """A button's action: calls the service and shows its answer."""

    async def call() -> None:
        await tell(commands.call(service))

    return call


async def tell(future: Future[Answer]) -> None:
    """Shows what the service answers, or that it does not."""
    try:
        answer = await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_TIMEOUT_S)
    except asyncio.TimeoutError:
        ui.notify(f"no answer within {ANSWER_TIMEOUT_S:.0f} s", type="negative")
        return
    ui.notify(answer.message, type="positive" if answer.success else "warning")

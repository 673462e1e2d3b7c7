# SPDX-License-Identifier: Apache-2.0
"""The page: one object per open browser, which sends what has changed a few times a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from nicegui import ui

from nvila_ros.actions import ACTIONS, SENTENCE_OPENING
from nvila_ros.dashboard import drawings
from nvila_ros.dashboard.commands import MAX_CHARACTERS, Answer, Commands, InstructionGate
from nvila_ros.dashboard.looks import CSS, HEALTH_COLOURS, PHASE_COLOURS
from nvila_ros.dashboard.state import DashboardState
from nvila_ros.errors import InstructionError

REFRESH_PERIOD_S = 0.1  # the camera's 10 Hz; the rest is looked at in the same round
ANSWER_TIMEOUT_S = 5.0
NAMES = {"left": "←", "right": "→", "forward": "↑", "stop": "■"}


class DashboardPage:
    """Builds the page for one browser and keeps it up to date until that is closed."""

    def __init__(self, state: DashboardState, commands: Commands, gate: InstructionGate) -> None:
        self._state, self._commands, self._gate = state, commands, gate
        self._shown: dict[str, object] = {}
        ui.add_css(CSS)
        ui.colors(primary="#286edc", negative="#c8143c")
        self._header()
        with ui.element("main").classes("board"):
            self._camera_card()
            self._decision_card()
            self._map_card()
            self._strip_card()
            self._chart_card()
            self._health_card()
            self._simulator_card()
        client = ui.context.client
        client.on_connect(lambda: state.watch(client.id, True))
        client.on_disconnect(lambda: state.watch(client.id, False))
        client.on_delete(lambda: state.watch(client.id, False))
        ui.timer(REFRESH_PERIOD_S, self.refresh)

    def refresh(self) -> None:
        """Sends what is new since the last time."""
        state = self._state
        for name, image in (("camera", self._camera), ("strip", self._strip)):
            number = state.picture(name).number
            if number and self._is_new(name, number):
                image.set_source(f"/picture/{name}?n={number}")
        for parts, show in (
            (("state",), self._show_state),
            (("decision",), self._show_decision),
            (("episode", "trail", "plan"), self._show_map),
            (("motion",), self._show_motion),
            (("health",), self._show_health),
            (("instructions",), self._show_instructions),
            (("episode",), self._show_episode),
        ):
            versions = [state.version(part) for part in parts]
            if self._is_new(show.__name__, versions):
                show()
        if self._is_new("silent", state.silent):
            self._silence.set_visibility(state.silent)

    def _is_new(self, name: str, value: object) -> bool:
        changed = self._shown.get(name) != value
        self._shown[name] = value
        return changed

    def _header(self) -> None:
        with ui.header().classes("top"):
            ui.label("nvila").classes("brand")
            self._phase = ui.badge("…").mark("phase").props('id="phase"')
            self._result = ui.label().classes("result").props('id="result"')
            ui.space()
            ui.button("Emergency stop", icon="front_hand", on_click=self._stop).props(
                'color=negative id="stop"'
            ).classes("stop")
        self._silence = ui.label(
            "No navigator is heard. Is it running, in the same ROS domain and namespace?"
        ).classes("silence")

    def _camera_card(self) -> None:
        with _card("Camera and instruction", "camera"):
            self._camera = ui.interactive_image().classes("picture")
            with ui.row().classes("line"):
                self._motion = ui.label("0.00 m/s, 0.00 rad/s").props('id="speed"')
                ui.label("measured by odometry").classes("faint")
            self._text = (
                ui.input("Where to go?", placeholder="Go to the red chair.")
                .props(f'outlined dense clearable maxlength={MAX_CHARACTERS} id="instruction"')
                .classes("wide")
                .on("keydown.enter", self._send)
            )
            with ui.row().classes("line"):
                ui.button("Go", icon="send", on_click=self._send).props('id="go"')
                for name, icon in (
                    ("pause", "pause"),
                    ("resume", "play_arrow"),
                    ("cancel", "close"),
                ):
                    ui.button(icon=icon, on_click=self._caller(f"navigator/{name}")).props(
                        f'outline id="{name}" aria-label="{name}"'
                    ).tooltip(name)
                self._clear = ui.button(
                    "Clear stop",
                    icon="lock_open",
                    on_click=self._caller("navigator/clear_emergency_stop"),
                ).props('outline color=negative id="clear"')
            self._history = ui.column().classes("history")

    def _decision_card(self) -> None:
        with _card("Decision", "decision"):
            self._sentence = ui.label("none yet").classes("sentence").props('id="sentence"')
            self._about = ui.label().classes("faint")
            self._bars = []
            for action in ACTIONS:
                with ui.element("div").classes("bar"):
                    words = action.sentence.removeprefix(SENTENCE_OPENING).strip(" .")
                    ui.label(f"{NAMES[action.kind]} {words}")
                    bar = ui.linear_progress(0.0, show_value=False).props("instant-feedback")
                    self._bars.append((bar, ui.label("")))

    def _map_card(self) -> None:
        with _card("Floor plan and trail", "map"):
            with ui.element("div").classes("map"):
                self._ground = ui.html("", sanitize=False)
                self._movement = ui.html("", sanitize=False).classes("above")
            ui.label(
                "orange: driven, blue: planned, red: the goal (known in the simulator only)"
            ).classes("faint")

    def _strip_card(self) -> None:
        with _card("What the model saw", "strip"), ui.element("div").classes("strip-frame"):
            self._strip = ui.interactive_image().classes("strip")

    def _chart_card(self) -> None:
        with _card("Confidence over time", "chart"):
            self._chart = ui.html(drawings.confidence_chart([]), sanitize=False).classes("chart")

    def _health_card(self) -> None:
        with _card("Latency, rates, health", "health"):
            self._health = ui.column().classes("health")

    def _simulator_card(self) -> None:
        with _card("Simulator", "simulator") as self._simulator:
            self._where = ui.label().props('id="apartment"')
            self._suggestion = ui.button(
                "Its own instruction", icon="content_paste", on_click=self._suggest
            ).props("flat dense no-caps")
            with ui.row().classes("line"):
                self._seed = (
                    ui.number("Seed", min=0, max=999_999_999, precision=0)
                    .props('outlined dense id="seed"')
                    .classes("seed")
                )
                ui.button("New apartment", on_click=self._move).props('outline id="move"')
                ui.button("Random", icon="casino", on_click=self._random).props(
                    'outline id="random"'
                )
                ui.button(
                    "Back to start", icon="replay", on_click=self._caller("simulator/reset")
                ).props('outline id="reset"')
        self._simulator.set_visibility(False)

    def _show_state(self) -> None:
        row = self._state.status
        phase = str(row.get("state", "…"))
        self._phase.set_text(phase.replace("_", " "))
        self._phase.props(f"color={PHASE_COLOURS.get(phase, 'grey-7')}")
        result, message = row.get("result"), row.get("message", "")
        code = f"{result} ({row.get('code')})" if result else ""
        self._result.set_text(": ".join(filter(None, (code, message))))
        self._clear.set_visibility(phase == "emergency_stop")

    def _show_decision(self) -> None:
        rows = self._state.decisions()
        self._chart.set_content(drawings.confidence_chart(rows))
        if not rows:
            return
        row = rows[-1]
        words = row["sentence"].removeprefix(SENTENCE_OPENING).strip(" .")
        self._sentence.set_text(words)
        self._about.set_text(
            f"decision {row['step']} of episode {row['episode']}: {row['confidence']:.0%} sure, "
            f"{1e3 * row['latency_s']:.0f} ms, {row['num_encoded_frames']} new frames encoded"
        )
        for number, (bar, label) in enumerate(self._bars):
            values = row["probabilities"]
            value = values[number] if number < len(values) else 0.0
            bar.set_value(value)
            bar.props(f"color={'primary' if number == row['index'] else 'grey-6'}")
            # Restraint does not offer what led nowhere; the model gives it no probability at all.
            label.set_text(f"{value:.0%}" if value > 0.0 else "–")

    def _show_map(self) -> None:
        state = self._state
        trail, plan = state.trail(), state.episode.get("plan", {})
        box = drawings.map_box(plan, trail)
        if self._is_new("ground", (box, state.version("episode"))):
            self._ground.set_content(drawings.ground(plan, box))
        self._movement.set_content(
            drawings.movement(box, trail, state.plan, state.pose, state.episode.get("goal"))
        )

    def _show_motion(self) -> None:
        forward_m_s, turn_rad_s = self._state.speed
        self._motion.set_text(f"{forward_m_s + 0.0:.2f} m/s, {turn_rad_s + 0.0:.2f} rad/s")

    def _show_health(self) -> None:
        self._health.clear()
        with self._health:
            for task, health in self._state.health.items():
                with ui.row().classes("line"):
                    ui.icon("circle", color=HEALTH_COLOURS.get(health.level, "grey"), size="0.8rem")
                    ui.label(task).classes("task")
                    ui.label(health.message)
                known = {
                    key: value for key, value in health.values.items() if value not in ("", "nan")
                }
                text = ", ".join(f"{key} {value}" for key, value in known.items())
                ui.label(text).classes("faint")

    def _show_instructions(self) -> None:
        self._history.clear()
        with self._history:
            for told in self._state.instructions()[:6]:
                with (
                    ui.element("div")
                    .classes("told")
                    .on("click", lambda _, text=told.text: self._text.set_value(text))
                ):
                    ui.label(told.text)
                    ui.label(told.result or ("under way" if told.episode else "heard")).classes(
                        "faint"
                    )

    def _show_episode(self) -> None:
        row = self._state.episode
        self._simulator.set_visibility(bool(row))
        if row:
            self._where.set_text(f"Apartment {row['seed']}, {row['geodesic_m']:.1f} m to the goal")
            self._suggestion.set_text(row["instruction"])
            self._seed.set_value(row["seed"])

    def _stop(self) -> None:
        self._commands.emergency_stop()
        ui.notify("Emergency stop", type="negative")

    def _send(self) -> None:
        try:
            self._commands.instruct(self._gate.check(self._text.value or ""))
        except InstructionError as error:
            ui.notify(str(error), type="warning")
        else:
            self._text.set_value("")

    def _suggest(self) -> None:
        self._text.set_value(self._state.episode.get("instruction", ""))

    def _caller(self, service: str) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            await _tell(self._commands.call(service))

        return call

    async def _move(self) -> None:
        if self._seed.value is None:
            ui.notify("give a seed: any whole number is an apartment", type="warning")
            return
        self._commands.call("navigator/cancel")
        await _tell(self._commands.move_to_seed(int(self._seed.value)))

    async def _random(self) -> None:
        self._commands.call("navigator/cancel")
        await _tell(self._commands.call("simulator/random_episode"))


async def _tell(future: Future[Answer]) -> None:
    """Shows what the service answers, or that it does not."""
    try:
        answer = await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_TIMEOUT_S)
    except asyncio.TimeoutError:
        ui.notify(f"no answer within {ANSWER_TIMEOUT_S:.0f} s", type="negative")
        return
    ui.notify(answer.message, type="positive" if answer.success else "warning")


def _card(title: str, name: str) -> ui.card:
    card = ui.card().classes(f"part {name}")
    with card:
        ui.label(title).classes("title")
    return card

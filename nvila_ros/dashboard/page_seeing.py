# SPDX-License-Identifier: Apache-2.0
"""Parts of the page that show: pictures, the decision, the map, the chart, health."""

from __future__ import annotations

from nicegui import ui

from nvila_ros.actions import ACTIONS, SENTENCE_OPENING
from nvila_ros.dashboard import drawings
from nvila_ros.dashboard.looks import HEALTH_COLOURS, card
from nvila_ros.dashboard.state import DashboardState, Health

ARROWS = {"left": "←", "right": "→"}
ARROWS |= {"forward": "↑", "stop": "■"}
# The figures of /diagnostics that people look for first: label, task, key, factor, unit
TILES = (
    ("decision, median", "model", "decision latency p50 (s)", 1e3, "ms"),
    ("decision, 95 %", "model", "decision latency p95 (s)", 1e3, "ms"),
    ("camera", "camera", "rate (Hz)", 1.0, "Hz"),
    ("confidence", "model", "confidence of the last decision", 1e2, "%"),
    ("waiting", "state", "waiting share of the episode", 1e2, "%"),
    ("GPU memory", "model", "GPU memory (MB)", 1.0, "MB"),
)


class PicturePart:
    """The newest camera image, or the frames that the model saw; a slow browser skips some."""

    def __init__(self, state: DashboardState, name: str) -> None:
        self.watched: tuple[str, ...] = (name,)
        self._state, self._name = state, name
        self._image = ui.interactive_image().classes(name).props(f'data-test="{name}"')

    def show(self) -> None:
        """Tells the browser the newest picture's address; it fetches that when it is ready."""
        number = self._state.picture(self._name).number
        if number:
            self._image.set_source(f"/picture/{self._name}?n={number}")


class DecisionPart:
    """What the model chose, how sure it was, and every other action's probability."""

    watched = ("decision",)

    def __init__(self, state: DashboardState) -> None:
        self._state = state
        with card("Decision"):
            self._sentence = ui.label("none yet").classes("sentence").props('data-test="sentence"')
            self._about = ui.label().classes("faint")
            self._bars = [self._bar(action.kind, _words(action.sentence)) for action in ACTIONS]

    def _bar(self, kind: str, words: str) -> tuple[ui.linear_progress, ui.label]:
        with ui.element("div").classes("bar"):
            ui.label(f"{ARROWS[kind]} {words}")
            bar = ui.linear_progress(0.0, show_value=False).props("instant-feedback size=8px")
            return bar, ui.label("")

    def show(self) -> None:
        """The last decision."""
        row = next(reversed(self._state.decisions()), None)
        if row is None:
            return
        self._sentence.set_text(_words(row["sentence"]))
        self._about.set_text(
            f"decision {row['step'] + 1} of episode {row['episode']}: {row['confidence']:.0%} "
            f"sure, {1e3 * row['latency_s']:.0f} ms, {row['num_encoded_frames']} new frames encoded"
        )
        values = [*row["probabilities"], *(0.0 for _ in self._bars)]
        for number, ((bar, label), value) in enumerate(zip(self._bars, values)):  # noqa: B905
            bar.set_value(value)
            bar.props(f"color={'primary' if number == row['index'] else 'grey-6'}")
            # Restraint does not offer what led nowhere; such an action has no probability at all.
            label.set_text(f"{value:.0%}" if value > 0.0 else "–")


class ChartPart:
    """Confidence over time."""

    watched = ("decision",)

    def __init__(self, state: DashboardState) -> None:
        self._state = state
        with card("Confidence over time"):
            self._chart = ui.html(drawings.confidence_chart([]), sanitize=False).classes("chart")
            ui.label("a red square is a stop").classes("faint")

    def show(self) -> None:
        """All decisions that are kept."""
        self._chart.set_content(drawings.confidence_chart(self._state.decisions()))


class MapPart:
    """Floor plan or grid, the way driven, and what is planned."""

    watched = ("episode", "trail", "plan")

    def __init__(self, state: DashboardState) -> None:
        self._state = state
        self._grounded: object = None
        with card("Floor plan and trail"):
            with ui.element("div").classes("map"):
                self._ground = ui.html("", sanitize=False)
                self._movement = ui.html("", sanitize=False).classes("above")
            ui.label(
                "orange: driven; blue: planned; red: the goal, which only the simulator knows"
            ).classes("faint")

    def show(self) -> None:
        """The ground only when it is another one."""
        state = self._state
        trail, plan = state.trail(), state.episode.get("plan", {})
        box = drawings.map_box(plan, trail)
        if self._grounded != (box, state.version("episode")):
            self._grounded = (box, state.version("episode"))
            self._ground.set_content(drawings.ground(plan, box))
        goal = state.episode.get("goal")
        self._movement.set_content(drawings.movement(box, trail, state.plan, state.pose, goal))


class HealthPart:
    """Latencies and rates as figures, and all of /diagnostics to unfold."""

    watched = ("health",)

    def __init__(self, state: DashboardState) -> None:
        self._state = state
        with card("Latency, rates, health").classes("whole"):
            self._tiles = ui.element("div").classes("tiles")
            self._rows = ui.column().classes("rows")
            with ui.expansion("All values").props("dense").classes("wide"):
                self._details = ui.column().classes("rows")

    def show(self) -> None:
        """Made anew: it comes once a second."""
        health = self._state.health
        self._tiles.clear()
        with self._tiles:
            for name, task, key, factor, unit in TILES:
                if (text := figure(health.get(task), key, factor, unit)) is not None:
                    with ui.element("div").classes("tile"):
                        ui.label(text).classes("figure")
                        ui.label(name).classes("faint")
        self._rows.clear()
        with self._rows:
            for task, one in health.items():
                with ui.row().classes("line"):
                    ui.icon("circle", color=HEALTH_COLOURS.get(one.level, "grey"), size="0.8rem")
                    ui.label(task).classes("task")
                    ui.label(one.message)
        self._details.clear()
        with self._details:
            for task, one in health.items():
                text = ", ".join(f"{key} {value}" for key, value in one.values.items() if value)
                ui.label(f"{task}: {text}").classes("faint")


def figure(health: Health | None, key: str, factor: float, unit: str) -> str | None:
    """'0.35' seconds -> '350 ms'; None where there is no number, or nothing was measured."""
    try:
        value = factor * float(health.values[key]) if health else 0.0
    except (KeyError, ValueError):
        return None
    return f"{value:.0f} {unit}" if 0.0 < value < 1e9 else None


def _words(sentence: str) -> str:
    return sentence.removeprefix(SENTENCE_OPENING).strip(" .")

# SPDX-License-Identifier: Apache-2.0
"""Colours and layout of the page: one column on a phone, two on a tablet, three on a desk."""

from __future__ import annotations

from nicegui import ui

PHASE_COLOURS = {
    "idle": "green-8",
    "waiting": "blue-8",
    "thinking": "blue-8",
    "moving": "blue-8",
    "paused": "orange-9",
    "emergency_stop": "red-9",
    "fault": "red-9",
}
HEALTH_COLOURS = {0: "green", 1: "orange", 2: "red", 3: "grey"}

CSS = """
.nicegui-content { padding: 0; display: block; }
.top { padding: 8px 16px; align-items: center; gap: 12px; background: #1d2430; flex-wrap: nowrap; }
.brand { font-weight: 700; font-size: 1.2rem; }
.result { font-size: 0.9rem; min-width: 0; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.stop { font-weight: 700; flex: none; }
.silence { background: #a55400; color: white; padding: 6px 16px; }
.board { display: grid; gap: 12px; padding: 12px; grid-template-columns: minmax(0, 1fr); }
.stack { display: flex; flex-direction: column; gap: 12px; min-width: 0; }
.part { gap: 8px; padding: 12px; align-items: stretch; min-width: 0; }
.title { font-weight: 600; }
.faint { opacity: 0.65; font-size: 0.8rem; overflow-wrap: anywhere; }
.line { align-items: center; gap: 8px; }
.wide { width: 100%; }
.seed { width: 8rem; }
.camera { width: 100%; min-height: 200px; }
.camera img { width: 100%; max-height: 44vh; object-fit: contain; }
.frames { overflow-x: auto; width: 100%; }
.strip { width: 100%; min-width: 900px; min-height: 60px; background: #0002; }
.strip img { width: 100%; }
.sentence { font-size: 1.3rem; }
.bar { display: grid; grid-template-columns: 9.5rem 1fr 3rem; align-items: center; gap: 8px;
  font-size: 0.85rem; white-space: nowrap; }
.bar > :last-child { text-align: right; }
.map { position: relative; }
.map svg { width: 100%; max-height: 52vh; display: block; }
.map .above { position: absolute; inset: 0; }
.map .opening { stroke: white; }
.body--dark .map .opening { stroke: #1d1d1d; }
.chart svg { width: 100%; display: block; }
.rows { gap: 4px; width: 100%; }
.told { cursor: pointer; display: flex; justify-content: space-between; gap: 8px; width: 100%;
  border-top: 1px solid #8884; padding-top: 4px; font-size: 0.9rem; }
.outcome { flex: none; }
.tiles { display: flex; flex-wrap: wrap; gap: 8px 28px; }
.figure { font-size: 1.3rem; }
.task { font-weight: 600; min-width: 5rem; }
@media (max-width: 599px) {
  .brand, .stop .q-icon { display: none; }
  .top { padding: 8px; gap: 8px; }
  .result { white-space: normal; font-size: 0.75rem; line-height: 1.1; max-height: 2.2em; }
}
@media (min-width: 700px) {
  .board { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .whole { grid-column: 1 / -1; }
}
@media (min-width: 1100px) {
  .board { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
"""


def card(title: str) -> ui.card:
    """A part of the board under its title."""
    made = ui.card().classes("part")
    with made:
        ui.label(title).classes("title")
    return made

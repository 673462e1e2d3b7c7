# SPDX-License-Identifier: Apache-2.0
"""The table of figures that were aimed at: measured, floor, target, and what peers did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from floors import FLOORS

Rows = dict[str, dict[str, Any]]

# figure, row, key, target, whether more is better, peers as (name, row, key)
FIGURES: tuple[tuple[str, str, str, float, bool, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "decode NVILA-8B, context 1,088, tokens/s", "lite8b", "decode_tokens_per_s", 500, True,
        (("our bf16 eager", "own_bf16", "decode_tokens_per_s"),
         ("HF Qwen2-VL-7B bf16", "qwen2_vl", "decode_tokens_per_s")),
    ),
    ("decode NVILA-2B, tokens/s", "lite2b", "decode_tokens_per_s", 1400, True, ()),
    (
        "prefill 1,088 tokens, 8B, ms", "lite8b", "prefill_1088_ms", 26, False,
        (("our bf16 eager", "own_bf16", "prefill_1088_ms"),),
    ),
    (
        "vision tower 8 frames, after a pause, ms", "lite8b", "vision_tower_8_ms", 10, False, (),
    ),
    (
        "vision tower 1 frame, after a pause, ms", "lite8b", "vision_tower_1_ms", 2, False, (),
    ),
    (
        "the same with projector, 8 frames, ms", "lite8b", "vision_8_ms", 10, False,
        (("our bf16 eager", "own_bf16", "vision_8_ms"),),
    ),
    (
        "the same with projector, 1 frame, ms", "lite8b", "vision_1_ms", 2, False,
        (("our bf16 eager", "own_bf16", "vision_1_ms"),),
    ),
    (
        "decision NVILA-Lite-8B, 1 of 8 frames new, ms", "lite8b", "decision_p50_ms", 40, False,
        (("our bf16 eager, grammar", "own_bf16", "decision_1_new_grammar_ms"),
         ("our bf16 eager, 8 new, 12 tokens", "own_bf16", "decision_8_new_free_12_tokens_ms"),
         ("HF Qwen2-VL-7B bf16, 12 tokens", "qwen2_vl", "decision_ms")),
    ),
    ("GPU memory, all of it, bytes", "lite8b", "in_use_by_driver_bytes", 7.5e9, False, ()),
)  # fmt: skip


def summarise(rows: Rows) -> list[dict[str, Any]]:
    """One entry per figure that was measured."""
    found = []
    for title, row, key, target, more_is_better, peers in FIGURES:
        measured = rows.get(row, {}).get(key)
        if measured is None:
            continue
        entry: dict[str, Any] = {"figure": title, "measured": measured, "target": target}
        entry["met"] = measured >= target if more_is_better else measured <= target
        sustained = rows[row].get(key.removesuffix("_ms") + "_sustained_ms")
        if sustained is not None:
            entry["sustained"] = sustained
        floor = FLOORS.get((row, key))
        if floor is not None:
            entry["floor"], entry["times_the_floor"] = floor, _ratio(floor, measured)
        entry["peers"] = {
            name: {"measured": value, "times_ours": _ratio(value, measured)}
            for name, peer_row, peer_key in peers
            if (value := rows.get(peer_row, {}).get(peer_key)) is not None
        }
        found.append(entry)
    return found


def _ratio(one: float, other: float) -> float:
    """How many times slower the slower one is."""
    return round(max(one / other, other / one), 2)


def text(entries: list[dict[str, Any]]) -> str:
    """For the terminal."""
    lines = []
    for entry in entries:
        state = "met" if entry["met"] else "NOT met"
        line = f"{entry['figure']:46} {_short(entry['measured'])}, target {_short(entry['target'])}"
        line += f" {state}"
        if "sustained" in entry:
            line += f"; sustained {_short(entry['sustained'])}"
        if "floor" in entry:
            line += f"; floor {_short(entry['floor'])} ({entry['times_the_floor']}x)"
        for name, peer in entry["peers"].items():
            line += f"; {name} {_short(peer['measured'])} ({peer['times_ours']}x)"
        lines.append(line)
    return "\n".join(lines)


_short: Callable[[float], str] = "{:.4g}".format

# SPDX-License-Identifier: Apache-2.0
"""Drawings as SVG text: floor plan or grid below, trail and plan above, confidence over time."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

MARGIN_M = 0.4
MIN_SPAN_M = 4.0  # of a map without a floor plan
WALL_M, DOOR_M = 0.12, 1.0
ROBOT_RADIUS_M = 0.2
GOAL_RADIUS_M = 1.0  # counts as arrived
CHART_WIDTH, CHART_HEIGHT = 600.0, 160.0

Box = tuple[float, float, float, float]  # x_min_m, y_min_m, x_max_m, y_max_m


def map_box(plan: dict[str, Any], points: Sequence[tuple[float, float]]) -> Box:
    """What the map shows: the apartment, or else the trail in whole metres."""
    if plan:
        width_m, height_m = plan["size_m"]
        return -MARGIN_M, -MARGIN_M, width_m + MARGIN_M, height_m + MARGIN_M
    xs, ys = zip(*(points or [(0.0, 0.0)]), strict=True)
    sides = []
    for values in (xs, ys):
        centre = (min(values) + max(values)) / 2
        half = max(MIN_SPAN_M, max(values) - min(values) + 2.0) / 2
        sides.append((math.floor(centre - half), math.ceil(centre + half)))
    (x_min, x_max), (y_min, y_max) = sides
    return float(x_min), float(y_min), float(x_max), float(y_max)


def ground(plan: dict[str, Any], box: Box) -> str:
    """The layer that rarely changes: rooms, doors and furniture, or a grid of metres."""
    return _svg(box, _apartment(plan) if plan else _grid(box), "ground")


def movement(
    box: Box,
    trail: Sequence[tuple[float, float]],
    plan: Sequence[tuple[float, float, float]],
    pose: tuple[float, float, float] | None,
    goal: Sequence[float] | None,
) -> str:
    """The layer above: where the robot was, is, and is about to go."""
    parts = []
    if goal is not None:
        x, y = goal
        parts.append(
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{GOAL_RADIUS_M}" fill="#c8143c22" '
            'stroke="#c8143c" stroke-width="0.04"/>'
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="0.12" fill="#c8143c"/>'
        )
    if len(trail) > 1:
        parts.append(_line(trail, "#eb5a14", 'class="trail"'))
    if plan:
        points = [(x, y) for x, y, _ in plan]
        if pose is not None:
            points.insert(0, pose[:2])
        parts.append(_line(points, "#286edc", 'stroke-dasharray="0.1 0.1" class="plan"'))
        x, y, yaw_rad = plan[-1]
        parts.append(_arrow(x, y, yaw_rad, "none", "#286edc"))
    if pose is not None:
        parts.append(_arrow(*pose, "#eb5a14", "#ffffff"))
    return _svg(box, "".join(parts), "movement")


def confidence_chart(decisions: Sequence[dict[str, Any]]) -> str:
    """Confidence of the last decisions in [0, 1], oldest left; a stop is a square."""
    left, top, right, bottom = 42.0, 8.0, CHART_WIDTH - 8.0, CHART_HEIGHT - 8.0
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(
            f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="currentColor" '
            f'stroke-opacity="0.2"/><text x="{left - 6}" y="{y + 5:.1f}" text-anchor="end" '
            f'font-size="14" fill="currentColor">{share:.0%}</text>'
        )
    rows = [row for row in decisions if math.isfinite(row.get("confidence", math.nan))]
    step = (right - left - 8.0) / max(len(rows) - 1, 20)
    points = []
    for number, row in enumerate(rows):
        share = min(1.0, max(0.0, row["confidence"]))
        points.append((left + 4 + number * step, bottom - share * (bottom - top)))
    if points:
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{text}" fill="none" stroke="#286edc" stroke-width="2"/>')
    for (x, y), row in zip(points, rows, strict=True):
        if row.get("index") == 0:
            parts.append(
                f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="#c8143c"/>'
            )
        else:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#286edc"/>')
    return (
        f'<svg viewBox="0 0 {CHART_WIDTH:.0f} {CHART_HEIGHT:.0f}" role="img" '
        f'aria-label="confidence of the last decisions">{"".join(parts)}</svg>'
    )


def _svg(box: Box, content: str, name: str) -> str:
    """Metres with y up; text inside must be turned back."""
    x_min, y_min, x_max, y_max = box
    return (
        f'<svg class="{name}" viewBox="{x_min:.2f} {-y_max:.2f} {x_max - x_min:.2f} '
        f'{y_max - y_min:.2f}"><g transform="scale(1,-1)">{content}</g></svg>'
    )


def _line(points: Sequence[tuple[float, float]], colour: str, more: str) -> str:
    text = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return (
        f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="0.07" '
        f'stroke-linejoin="round" {more}/>'
    )


def _arrow(x_m: float, y_m: float, yaw_rad: float, fill: str, stroke: str) -> str:
    r = ROBOT_RADIUS_M
    return (
        f'<g transform="translate({x_m:.2f},{y_m:.2f}) rotate({math.degrees(yaw_rad):.1f})">'
        f'<polygon points="{r * 1.5},0 {-r},{r} {-r / 2},0 {-r},{-r}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="0.04"/></g>'
    )


def _text(x_m: float, y_m: float, text: str, size_m: float, opacity: float) -> str:
    return (
        f'<text transform="translate({x_m:.2f},{y_m:.2f}) scale(1,-1)" text-anchor="middle" '
        f'font-size="{size_m}" fill="currentColor" fill-opacity="{opacity}">'
        f"{html.escape(text)}</text>"
    )


def _grid(box: Box) -> str:
    x_min, y_min, x_max, y_max = box
    step = max(1, math.ceil(max(x_max - x_min, y_max - y_min) / 40))
    lines: list[Box] = [
        (x, y_min, x, y_max) for x in range(math.ceil(x_min), math.floor(x_max) + 1, step)
    ]
    lines += [(x_min, y, x_max, y) for y in range(math.ceil(y_min), math.floor(y_max) + 1, step)]
    return "".join(
        f'<line x1="{a}" y1="{b}" x2="{c}" y2="{d}" stroke="currentColor" stroke-opacity="0.15" '
        f'stroke-width="{0.02 * step}"/>'
        for a, b, c, d in lines
    )


def _apartment(plan: dict[str, Any]) -> str:
    parts = []
    for room in plan["rooms"]:
        x_min, y_min, x_max, y_max = room["box_m"]
        parts.append(
            f'<rect x="{x_min:.2f}" y="{y_min:.2f}" width="{x_max - x_min:.2f}" '
            f'height="{y_max - y_min:.2f}" fill="currentColor" fill-opacity="0.04" '
            f'stroke="currentColor" stroke-opacity="0.75" stroke-width="{WALL_M}"/>'
        )
    for door in plan["doors"]:
        (x, y), half = door["at_m"], DOOR_M / 2
        dx, dy = (half, 0.0) if door["axis"] == "x" else (0.0, half)
        ends = f'x1="{x - dx:.2f}" y1="{y - dy:.2f}" x2="{x + dx:.2f}" y2="{y + dy:.2f}"'
        if door["open"]:
            parts.append(f'<line {ends} class="opening" stroke-width="{WALL_M * 1.3:.2f}"/>')
        colour = html.escape(str(door["colour"]))
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="0.06"/>')
    for piece in plan["furniture"]:
        red, green, blue = piece["rgb"]
        text = " ".join(f"{x:.2f},{y:.2f}" for x, y in piece["corners_m"])
        parts.append(
            f'<polygon points="{text}" fill="rgb({red},{green},{blue})" fill-opacity="0.8" '
            'stroke="currentColor" stroke-opacity="0.4" stroke-width="0.02">'
            f"<title>{html.escape(piece['name'])}</title></polygon>"
        )
    for room in plan["rooms"]:
        x_min, y_min, x_max, y_max = room["box_m"]
        parts.append(_text((x_min + x_max) / 2, (y_min + y_max) / 2, room["kind"], 0.28, 0.7))
    return "".join(parts)

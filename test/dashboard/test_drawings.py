# SPDX-License-Identifier: Apache-2.0
"""Drawings are well-formed, to scale, and safe whatever was heard."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from nvila_ros.dashboard.drawings import confidence_chart, ground, map_box, movement

PLAN = {
    "size_m": [6.0, 4.0],
    "rooms": [{"kind": "<script>", "box_m": [0, 0, 6, 4]}],
    "doors": [{"colour": 'red"/>', "axis": "x", "at_m": [3, 0], "open": True}],
    "furniture": [
        {"name": "red & blue", "rgb": [255, 0, 0], "corners_m": [[1, 1], [2, 1], [2, 2], [1, 2]]}
    ],
}


def parse(svg):
    return ElementTree.fromstring(svg)


def test_the_apartment_is_drawn_and_its_names_are_escaped():
    box = map_box(PLAN, [])
    root = parse(ground(PLAN, box))
    assert "<script>" not in ground(PLAN, box)
    texts = [element.text for element in root.iter() if element.tag == "text"]
    assert texts == ["<script>"]
    assert [float(value) for value in root.get("viewBox").split()] == [-0.4, -4.4, 6.8, 4.8]


def test_without_an_apartment_the_map_is_a_grid_around_the_trail():
    trail = [(10.0, -3.0), (14.0, -3.0)]
    box = map_box({}, trail)
    assert box[0] <= 9 and box[2] >= 15 and box[1] <= -4 and box[3] >= -2
    assert len(list(parse(ground({}, box)).iter("line"))) > 8


@pytest.mark.parametrize("far_m", [0.0, 100.0, 1e5])
def test_a_grid_has_a_bounded_number_of_lines(far_m):
    box = map_box({}, [(0.0, 0.0), (far_m, far_m)])
    assert len(list(parse(ground({}, box)).iter("line"))) < 120


def test_trail_plan_robot_and_goal_are_there_when_known():
    box = (0.0, 0.0, 5.0, 5.0)
    assert len(list(parse(movement(box, [], (), None, None)).iter())) == 2
    pose = (1.0, 2.0, math.pi / 2)
    svg = movement(box, [(0, 0), (1, 2)], [(1, 2, 0), (2, 2, 0)], pose, [4.0, 4.0])
    root = parse(svg)
    lines = {element.get("class"): element.get("points") for element in root.iter("polyline")}
    assert lines == {"trail": "0.00,0.00 1.00,2.00", "plan": "1.00,2.00 1.00,2.00 2.00,2.00"}
    assert "translate(1.00,2.00) rotate(90.0)" in svg
    assert len(list(root.iter("circle"))) == 2


def test_the_chart_shows_every_decision_and_marks_stops():
    rows = [{"confidence": 0.5, "index": 3}, {"confidence": 2.0, "index": 1}]
    rows += [{"confidence": 0.9, "index": 0}, {"confidence": math.nan, "index": 1}, {}]
    root = parse(confidence_chart(rows))
    assert len(list(root.iter("circle"))) == 2 and len(list(root.iter("rect"))) == 1
    heights = [float(point.get("cy")) for point in root.iter("circle")]
    assert heights == [80.0, 8.0]  # a half, and what is above one stays in the chart
    assert not list(parse(confidence_chart([])).iter("polyline"))

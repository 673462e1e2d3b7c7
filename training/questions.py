# SPDX-License-Identifier: Apache-2.0
"""Questions with exact answers about one rendered view: the small model sees before it drives.

A view comes with the segmentation that the renderer drew for it, so every answer is true by
construction: which object and colour, on which side, how far, which room, how much floor is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DISTANCE_WORDS: tuple[tuple[float, str], ...] = (
    (0.5, "half a meter"),
    (1.0, "one meter"),
    (1.5, "one and a half meters"),
    (2.0, "two meters"),
    (3.0, "three meters"),
    (4.0, "four meters"),
    (6.0, "six meters"),
    (8.0, "eight meters"),
)
FREE_WORDS = ("blocked", "25 cm", "50 cm", "75 cm")
NOT_VISIBLE = "It is not visible."


@dataclass(frozen=True)
class SeenObject:
    """One landmark in view: where it stands from the camera and its share of the picture."""

    category: str
    colour: str
    bearing_rad: float  # positive to the left
    distance_m: float
    share: float  # of the picture's pixels, [0, 1]

    @property
    def name(self) -> str:
        """Colour and category, as instructions say it."""
        return f"{self.colour} {self.category}"


def side_words(bearing_rad: float) -> str:
    """The bearing as the turn that would face it: multiples of 15 degrees up to 45."""
    steps = min(3, round(abs(math.degrees(bearing_rad)) / 15.0))
    if steps == 0:
        return "ahead"
    return f"{15 * steps} degrees {'left' if bearing_rad > 0 else 'right'}"


def distance_words(distance_m: float) -> str:
    """The nearest of a few spoken distances, by ratio."""
    nearest = min(DISTANCE_WORDS, key=lambda entry: abs(math.log(entry[0] / max(distance_m, 0.1))))
    return nearest[1]


def ask_about_view(
    rng: np.random.Generator,
    seen: list[SeenObject],
    absent: list[str],
    room_kind: str,
    free_forward_units: int,
    num_turns: int = 5,
) -> list[tuple[str, str]]:
    """Question and answer pairs about one view, mixed at random.

    `absent` names things of the apartment that are not in view; half of the negative questions are
    made harder by joining a seen colour with a seen category that do not belong together.
    `free_forward_units` counts how many 25 cm steps forward are free (0 to 3).
    """
    turns: list[tuple[str, str]] = []
    for _ in range(num_turns):
        kind = rng.random()
        if seen and kind < 0.55:
            turns.append(where_question(rng, seen))
        elif absent and kind < 0.72:
            turns.append(absent_question(rng, seen, absent))
        elif seen and kind < 0.86:
            turns.append(what_question(rng, seen))
        elif kind < 0.93:
            turns.append(("Which room is this?", f"This is the {room_kind}."))
        else:
            turns.append(("How far can you move forward?", FREE_WORDS[free_forward_units] + "."))
    return turns


def where_question(rng: np.random.Generator, seen: list[SeenObject]) -> tuple[str, str]:
    """Asks on which side and how far one of the seen things is."""
    thing = seen[rng.integers(len(seen))]
    answer = f"It is {side_words(thing.bearing_rad)}, {distance_words(thing.distance_m)}."
    return f"Where is the {thing.name}?", answer


def absent_question(
    rng: np.random.Generator, seen: list[SeenObject], absent: list[str]
) -> tuple[str, str]:
    """Asks for something that is not in view: absent, or a mixture of two seen things."""
    names = {thing.name for thing in seen}
    if len(seen) > 1 and rng.random() < 0.5:
        first, second = rng.choice(len(seen), 2, replace=False)
        mixed = f"{seen[first].colour} {seen[second].category}"
        if mixed not in names:
            return f"Where is the {mixed}?", NOT_VISIBLE
    return f"Where is the {absent[rng.integers(len(absent))]}?", NOT_VISIBLE


def what_question(rng: np.random.Generator, seen: list[SeenObject]) -> tuple[str, str]:
    """Asks what the nearest thing on the side of one of the seen things is."""
    thing = seen[rng.integers(len(seen))]
    same_side = [s for s in seen if side_words(s.bearing_rad) == side_words(thing.bearing_rad)]
    nearest = min(same_side, key=lambda s: s.distance_m)
    return f"What is {side_words(nearest.bearing_rad)}?", f"The {nearest.name}."


def question_words() -> list[str]:
    """Every word that questions and answers can hold besides names and room kinds."""
    text = " ".join(
        [words for _, words in DISTANCE_WORDS]
        + list(FREE_WORDS)
        + [
            NOT_VISIBLE,
            "Where is the What is ahead Which room is this? This is the It is",
            "left right",
        ]
        + ["15 30 45 degrees", "How far can you move forward?", "The"]
    )
    return sorted({word.strip(".,?") for word in text.split()})

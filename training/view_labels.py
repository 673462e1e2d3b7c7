# SPDX-License-Identifier: Apache-2.0
"""The closed lists of things and colours that dense view labels speak of."""

from __future__ import annotations

from nvila_ros.sim.scene import CATEGORIES, COLOURS

STRUCTURE = ("other", "floor", "wall", "ceiling", "door")
CATEGORY_NAMES: tuple[str, ...] = (*STRUCTURE, *sorted(CATEGORIES))
COLOUR_NAMES: tuple[str, ...] = ("none", *sorted(COLOURS))
CATEGORY_IDS: dict[str, int] = {name: index for index, name in enumerate(CATEGORY_NAMES)}
COLOUR_IDS: dict[str, int] = {name: index for index, name in enumerate(COLOUR_NAMES)}

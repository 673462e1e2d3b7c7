# SPDX-License-Identifier: Apache-2.0
"""Dense labels of a view, read off the segmentation that the renderer drew for it."""

from __future__ import annotations

import math

import numpy as np

from nvila_ros.sim.scene import CATEGORIES, COLOURS, Scene
from nvila_ros.training.questions import SeenObject

STRUCTURE = ("other", "floor", "wall", "ceiling", "door")
CATEGORY_NAMES: tuple[str, ...] = (*STRUCTURE, *sorted(CATEGORIES))
COLOUR_NAMES: tuple[str, ...] = ("none", *sorted(COLOURS))
CATEGORY_IDS: dict[str, int] = {name: index for index, name in enumerate(CATEGORY_NAMES)}
COLOUR_IDS: dict[str, int] = {name: index for index, name in enumerate(COLOUR_NAMES)}


class LandmarkTable:
    """Turns a segmentation picture into patch labels and a list of seen objects."""

    def __init__(self, scene: Scene, keys: list[str]) -> None:
        self.things: dict[int, tuple[str, str, float, float]] = {}
        self.category = np.zeros(len(keys), np.uint8)
        self.colour = np.zeros(len(keys), np.uint8)
        for index, key in enumerate(keys):
            kind, _, number = key.partition(":")
            if kind == "door":
                door = scene.doors[int(number)]
                self.things[index] = ("door", door.colour, door.x_m, door.y_m)
            elif kind == "furniture":
                item = scene.furniture[int(number)]
                self.things[index] = (item.category, item.colour, item.x_m, item.y_m)
            else:
                self.category[index] = CATEGORY_IDS.get(key, 0)
                continue
            category, colour = self.things[index][:2]
            self.category[index] = CATEGORY_IDS[category]
            self.colour[index] = COLOUR_IDS[colour]

    def patches(self, picture: np.ndarray, per_side: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) landmark indices -> (P,) category and (P,) colour, by a vote of nine pixels."""
        height, width = picture.shape
        rows = ((np.arange(per_side * 3) + 0.5) * height / (per_side * 3)).astype(int)
        columns = ((np.arange(per_side * 3) + 0.5) * width / (per_side * 3)).astype(int)
        samples = picture[np.ix_(rows, columns)].reshape(per_side, 3, per_side, 3)
        samples = samples.transpose(0, 2, 1, 3).reshape(per_side * per_side, 9)
        same = (samples[:, :, None] == samples[:, None, :]).sum(2)
        majority = samples[np.arange(len(samples)), same.argmax(1)]
        return self.category[majority], self.colour[majority]

    def seen(self, picture: np.ndarray, pose: np.ndarray, min_share: float) -> list[SeenObject]:
        """The objects that fill at least `min_share` of the picture, with bearing and distance."""
        counts = np.bincount(picture.ravel(), minlength=len(self.category))
        width = picture.shape[1]
        found = []
        for index, (category, colour, x_m, y_m) in self.things.items():
            share = counts[index] / picture.size
            if share < min_share:
                continue
            column = np.nonzero(picture == index)[1].mean() + 0.5
            bearing = math.atan(1.0 - 2.0 * column / width)  # HFOV 90 degrees: tan is 1 at the edge
            distance = math.hypot(x_m - pose[0], y_m - pose[1])
            found.append(SeenObject(category, colour, bearing, distance, float(share)))
        return found

    def absent(self, picture: np.ndarray) -> list[str]:
        """Names of objects with no pixel in the picture and no twin in it."""
        counts = np.bincount(picture.ravel(), minlength=len(self.category))
        names = {
            f"{colour} {category}"
            for i, (category, colour, _, _) in self.things.items()
            if counts[i]
        }
        every = {f"{colour} {category}" for category, colour, _, _ in self.things.values()}
        return sorted(every - names)

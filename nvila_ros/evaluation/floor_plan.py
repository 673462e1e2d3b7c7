# SPDX-License-Identifier: Apache-2.0
"""Floor plan: an episode seen from above, with the path the oracle takes and the one driven."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nvila_ros.config import SUCCESS_RADIUS_M
from nvila_ros.sim.episodes import Episode
from nvila_ros.sim.pictures import top_view
from nvila_ros.sim.scene import Scene
from nvila_ros.sim.world import World

PIXELS_PER_M = 80
SUPERSAMPLING = 2  # drawn larger, then shrunk: smooth edges
MARGIN_M = 0.45
PALENESS = 0.3  # share of white over the view from above, so that paths and names stand out
LINE_HEIGHT_M = 0.32  # of the text above and below the plan

BACKGROUND = (255, 255, 255)
INK = (35, 35, 40)
ORACLE = (40, 110, 220)
DRIVEN = (235, 90, 20)
START = (20, 140, 60)
GOAL = (200, 20, 60)


def draw_floor_plan(
    episode: Episode,
    driven: np.ndarray | None = None,
    instruction: str | None = None,
    result: str = "",
) -> Image.Image:
    """Plan of an episode; `driven` is (N, 2+) metres, `result` one line of text below."""
    plan = FloorPlan(episode, instruction or episode.instruction, result)
    if driven is not None and len(driven) > 1:
        plan.line(driven[:, :2], DRIVEN, 0.06)
        plan.disc(driven[-1, :2], 0.11, DRIVEN)
    plan.legend(driven is not None)
    return plan.image()


class FloorPlan:
    """A picture in metres, y up: apartment, oracle path, start, goal, and text above and below."""

    def __init__(self, episode: Episode, title: str = "", footer: str = "") -> None:
        scene = episode.scene
        self._scale = PIXELS_PER_M * SUPERSAMPLING
        characters = max(40, int(scene.width_m * 9))
        title_lines = textwrap.wrap(title, characters)
        self._header_m = MARGIN_M + LINE_HEIGHT_M * len(title_lines)
        self._height_m = scene.height_m
        footer_m = LINE_HEIGHT_M * (2 if footer else 1) + MARGIN_M
        size = (
            round((scene.width_m + 2 * MARGIN_M) * self._scale),
            round((scene.height_m + self._header_m + footer_m) * self._scale),
        )
        self._image = Image.new("RGB", size, BACKGROUND)
        picture = Image.fromarray(top_view(World(scene), self._scale))
        pale = Image.blend(picture, Image.new("RGB", picture.size, BACKGROUND), PALENESS)
        self._image.paste(pale, (self._length(MARGIN_M), self._length(self._header_m)))
        self._draw = ImageDraw.Draw(self._image)
        for row, line in enumerate(title_lines):
            self._text_at(MARGIN_M, MARGIN_M / 2 + row * LINE_HEIGHT_M, line, 0.2)
        if footer:
            top_m = self._header_m + scene.height_m + LINE_HEIGHT_M * 1.3
            self._text_at(MARGIN_M, top_m, footer, 0.2)
        self._names(scene)
        self._circle(np.asarray(episode.goal), SUCCESS_RADIUS_M, GOAL, width_m=0.02)
        self._dashes(np.asarray(episode.path), ORACLE, 0.05)
        self._arrow(np.asarray(episode.start), START)
        self._star(np.asarray(episode.goal), GOAL)

    def _names(self, scene: Scene) -> None:
        """What the rooms and the pieces are called."""
        for room in scene.rooms:
            self._text(room.centre, room.kind.upper(), 0.2, (90, 90, 95))
        for piece in scene.furniture:
            if piece.solid:
                self._text(np.array([piece.x_m, piece.y_m]), piece.category, 0.12, INK)

    def line(self, points_m: np.ndarray, colour: tuple[int, int, int], width_m: float) -> None:
        """A polyline with a white rim."""
        pixels = [self._pixel(point) for point in points_m]
        for tint, extra_m in ((BACKGROUND, 0.04), (colour, 0.0)):
            width = self._length(width_m + extra_m)
            self._draw.line(pixels, fill=tint, width=width, joint="curve")

    def _dashes(self, points_m: np.ndarray, colour: tuple[int, int, int], width_m: float) -> None:
        """A dashed polyline, 12 cm on and 8 cm off."""
        steps_m = np.linalg.norm(np.diff(points_m, axis=0), axis=1)
        arc_m = np.concatenate([[0.0], np.cumsum(steps_m)])
        for begin_m in np.arange(0.0, arc_m[-1], 0.2):
            wanted_m = np.linspace(begin_m, min(begin_m + 0.12, arc_m[-1]), 4)
            dash = [np.interp(wanted_m, arc_m, points_m[:, axis]) for axis in (0, 1)]
            self.line(np.stack(dash, axis=1), colour, width_m)

    def _circle(
        self, centre_m: np.ndarray, radius_m: float, colour: tuple[int, int, int], width_m: float
    ) -> None:
        """A ring."""
        box = self._box(centre_m, radius_m)
        self._draw.ellipse(box, outline=colour, width=self._length(width_m))

    def disc(self, centre_m: np.ndarray, radius_m: float, colour: tuple[int, int, int]) -> None:
        """A filled circle with a white rim."""
        self._draw.ellipse(
            self._box(centre_m, radius_m), fill=colour, outline=BACKGROUND, width=self._scale // 50
        )

    def _arrow(self, pose: np.ndarray, colour: tuple[int, int, int]) -> None:
        """A triangle that points where the robot looks."""
        angles = pose[2] + np.array([0.0, 2.5, -2.5])
        corners = pose[:2] + 0.22 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self._polygon(corners, colour)

    def _star(self, centre_m: np.ndarray, colour: tuple[int, int, int]) -> None:
        """A five-pointed star."""
        angles = math.pi / 2 + np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 0.22, 0.09)[:, None]
        corners = centre_m[:2] + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self._polygon(corners, colour)

    def legend(self, has_driven: bool) -> None:
        """One line under the plan."""
        entries = [("start", START), ("goal and success radius", GOAL), ("oracle path", ORACLE)]
        if has_driven:
            entries.append(("driven path", DRIVEN))
        left_m, top_m = MARGIN_M, self._header_m + self._height_m + 0.15
        for name, colour in entries:
            left = round(left_m * self._scale), round((top_m + 0.06) * self._scale)
            square = self._length(0.12)
            self._draw.rectangle([*left, left[0] + square, left[1] + square], fill=colour)
            self._text_at(left_m + 0.2, top_m, name, 0.17)
            left_m += 0.45 + 0.095 * len(name)

    def image(self) -> Image.Image:
        """The picture at its final size, even in both directions as video codecs want it."""
        width, height = self._image.size
        size = (width // SUPERSAMPLING // 2 * 2, height // SUPERSAMPLING // 2 * 2)
        return self._image.resize(size, Image.Resampling.LANCZOS)

    def pixels(self, points_m: np.ndarray) -> np.ndarray:
        """(N, 2+) metres -> (N, 2) column and row in `image()`."""
        return np.array([self._pixel(point) for point in points_m]) / SUPERSAMPLING

    def _pixel(self, point_m: np.ndarray) -> tuple[float, float]:
        x = (point_m[0] + MARGIN_M) * self._scale
        y = (self._header_m + self._height_m - point_m[1]) * self._scale
        return float(x), float(y)

    def _length(self, length_m: float) -> int:
        return max(1, round(length_m * self._scale))

    def _box(self, centre_m: np.ndarray, radius_m: float) -> list[float]:
        x, y = self._pixel(centre_m)
        radius = radius_m * self._scale
        return [x - radius, y - radius, x + radius, y + radius]

    def _polygon(self, corners_m: np.ndarray, fill: tuple[int, int, int]) -> None:
        pixels = [self._pixel(corner) for corner in corners_m]
        self._draw.polygon(pixels, fill=fill, outline=BACKGROUND, width=self._length(0.02))

    def _text(
        self, centre_m: np.ndarray, text: str, height_m: float, colour: tuple[int, int, int]
    ) -> None:
        self._draw.text(
            self._pixel(centre_m),
            text,
            fill=colour,
            anchor="mm",
            font=ImageFont.load_default(self._length(height_m)),
            stroke_width=self._length(0.02),
            stroke_fill=BACKGROUND,
        )

    def _text_at(self, left_m: float, top_m: float, text: str, height_m: float) -> None:
        position = (left_m * self._scale, top_m * self._scale)
        font = ImageFont.load_default(self._length(height_m))
        self._draw.text(position, text, fill=INK, font=font)

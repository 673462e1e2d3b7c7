# SPDX-License-Identifier: Apache-2.0
"""Samples as people see them: a strip of frames over the text, many on one sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from nvila_ros.errors import DataError
from nvila_ros.training.data.sample import ClipFile, Sample, open_frame, shown_frames

FRAME_PX, MAX_FRAMES, TEXT_COLUMNS, LINE_PX, GAP_PX = 96, 8, 118, 13, 10
WIDTH_PX = MAX_FRAMES * FRAME_PX
BACKGROUND, INK, ANSWER_INK, MISSING = (250, 250, 248), (30, 30, 30), (0, 90, 40), (190, 60, 60)
SHEET = (225, 225, 222)


@dataclass(frozen=True)
class Card:
    """One sample on a sheet, with a line about it in front."""

    sample: Sample
    caption: str = ""


def strip(sample: Sample) -> Image.Image:
    """Up to eight frames side by side; a frame that cannot be read is a red square."""
    picture = Image.new("RGB", (WIDTH_PX, FRAME_PX), BACKGROUND)
    frames = list(sample.frames)
    try:
        if frames and isinstance(frames[0], ClipFile):
            frames = [*frames[0].clip(MAX_FRAMES)]
    except DataError:
        pass
    shown = shown_frames(frames, MAX_FRAMES) if len(frames) > MAX_FRAMES else frames
    for number, frame in enumerate(shown):
        assert frame is not None, "a long list is never padded"
        try:
            tile = open_frame(frame)
            tile.thumbnail((FRAME_PX - 2, FRAME_PX - 2))
        except DataError:
            tile = Image.new("RGB", (FRAME_PX - 2, FRAME_PX - 2), MISSING)
        picture.paste(tile, (number * FRAME_PX, 0))
    return picture


def draw_card(card: Card) -> Image.Image:
    """The strip, then caption, user and answer texts."""
    lines: list[tuple[str, tuple[int, int, int]]] = []
    head = f"{card.sample.source} / {card.sample.key}  {card.caption}".strip()
    lines += [(line, INK) for line in textwrap.wrap(head, TEXT_COLUMNS)]
    for turn in card.sample.turns[:4]:
        user = turn.user.replace("\n", " ")
        lines += [(line, INK) for line in textwrap.wrap(f"> {user}", TEXT_COLUMNS)[:3]]
        lines += [
            (line, ANSWER_INK) for line in textwrap.wrap(f"= {turn.answer}", TEXT_COLUMNS)[:3]
        ]
    top = FRAME_PX if card.sample.frames else 0
    picture = Image.new("RGB", (WIDTH_PX, top + LINE_PX * len(lines) + GAP_PX), BACKGROUND)
    if card.sample.frames:
        picture.paste(strip(card.sample), (0, 0))
    draw = ImageDraw.Draw(picture)
    for number, (line, colour) in enumerate(lines):
        text = line.encode("latin-1", "replace").decode("latin-1")
        draw.text((2, top + 2 + LINE_PX * number), text, fill=colour)
    return picture


def draw_sheet(cards: Sequence[Card], columns: int = 2) -> Image.Image:
    """Cards in columns, each put where most room is left."""
    if not cards:
        raise DataError("there is no sample to draw; at least one is expected")
    pictures = [draw_card(card) for card in cards]
    columns = max(1, min(columns, len(pictures)))
    heights = [GAP_PX] * columns
    places = []
    for picture in pictures:
        column = heights.index(min(heights))
        places.append((GAP_PX + column * (WIDTH_PX + GAP_PX), heights[column]))
        heights[column] += picture.height + GAP_PX
    size = (GAP_PX + columns * (WIDTH_PX + GAP_PX), max(heights))
    sheet = Image.new("RGB", size, SHEET)
    for picture, place in zip(pictures, places, strict=True):
        sheet.paste(picture, place)
    return sheet

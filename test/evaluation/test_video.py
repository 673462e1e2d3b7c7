# SPDX-License-Identifier: Apache-2.0
"""The header of a drive's video shows the instruction, all of it where there is room."""

import pytest
from PIL import Image, ImageDraw

from nvila_ros.evaluation import video

CLAUSE = "Walk past the purple coffee table and go through the orange door. "


class Drawn(ImageDraw.ImageDraw):
    """Keeps what is written, and where."""

    def text(self, xy, text, **keys) -> None:
        self.lines = [*getattr(self, "lines", []), (xy, text, keys["font"])]


@pytest.mark.parametrize("num_clauses", [1, 3, 6])
def test_the_whole_instruction_fits_the_header(num_clauses: int) -> None:
    text = (CLAUSE * num_clauses).strip()
    drawn = Drawn(Image.new("RGB", (video.WIDTH_PX, video.HEIGHT_PX)))
    video._draw_header(drawn, text)
    assert " ".join(line for _, line, _ in drawn.lines) == text
    for (left, top), line, font in drawn.lines:
        _, _, right, bottom = font.getbbox(line)
        assert left + right <= video.WIDTH_PX and top + bottom <= video.HEADER_PX


def test_what_is_too_long_says_so() -> None:
    drawn = Drawn(Image.new("RGB", (video.WIDTH_PX, video.HEIGHT_PX)))
    video._draw_header(drawn, CLAUSE * 20)
    assert drawn.lines[0][1].startswith("Walk past") and drawn.lines[-1][1].endswith("...")

# SPDX-License-Identifier: Apache-2.0
"""Video of a recorded drive: camera, floor plan, the frames the model saw and its words."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nvila_ros.evaluation.drive_record import DriveRecord, HeardDecision
from nvila_ros.evaluation.floor_plan import DRIVEN, FloorPlan
from nvila_ros.sim.episodes import Episode

WIDTH_PX, HEIGHT_PX = 1120, 760
MARGIN_PX = 16
HEADER_PX = 84  # of the instruction
CAMERA_PX = 448
STRIP_PX = 130  # side of a history frame
HOLD_S = 1.5  # the last picture stays
PREFERRED_CODECS = ("libx264", "mpeg4")

_SMOOTH = Image.Resampling.BICUBIC
BACKGROUND = (250, 250, 248)
HEADER_FONTS_PX = (25, 21, 17, 14)  # the largest in which all of the instruction has room
INK = (30, 30, 36)
FAINT = (200, 200, 204)
BAR = (50, 130, 90)


class FrameComposer:
    """Draws the picture of the video for a time of the drive."""

    def __init__(self, record: DriveRecord, episode: Episode) -> None:
        self._record = record
        self._base = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), BACKGROUND)
        draw = ImageDraw.Draw(self._base)
        _draw_header(draw, episode.instruction)
        plan = FloorPlan(episode)
        picture = plan.image()
        room = (WIDTH_PX - CAMERA_PX - 3 * MARGIN_PX, CAMERA_PX)
        self._plan_scale = min(room[0] / picture.width, room[1] / picture.height)
        size = [round(side * self._plan_scale) for side in picture.size]
        left, top = CAMERA_PX + 2 * MARGIN_PX + (room[0] - size[0]) // 2, HEADER_PX
        self._plan_corner = np.array([left, top])
        self._base.paste(picture.resize((size[0], size[1]), _SMOOTH), (left, top))
        self._plan = plan

    def compose(self, stamp_s: float, jpeg: bytes) -> Image.Image:
        """The picture that belongs to one camera image."""
        picture = self._base.copy()
        draw = ImageDraw.Draw(picture)
        camera = Image.open(io.BytesIO(jpeg)).resize((CAMERA_PX, CAMERA_PX), _SMOOTH)
        picture.paste(camera, (MARGIN_PX, HEADER_PX))
        self._draw_path(draw, self._record.poses_until(stamp_s))
        decision = self._record.decision_at(stamp_s)
        self._draw_strip(picture, draw, decision)
        self._draw_words(draw, decision)
        return picture

    def _draw_path(self, draw: ImageDraw.ImageDraw, poses: np.ndarray) -> None:
        points = self._plan.pixels(poses) * self._plan_scale + self._plan_corner
        if len(points) > 1:
            draw.line([tuple(point) for point in points], fill=DRIVEN, width=4, joint="curve")
        angles = -poses[-1, 2] + np.array([0.0, 2.5, -2.5])  # rows grow downwards
        corners = points[-1] + 12 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([tuple(corner) for corner in corners], fill=DRIVEN, outline=(255, 255, 255))

    def _draw_strip(
        self, picture: Image.Image, draw: ImageDraw.ImageDraw, decision: HeardDecision | None
    ) -> None:
        strip = decision.strip if decision else ()
        top = HEADER_PX + CAMERA_PX + MARGIN_PX + 22
        draw.text((MARGIN_PX, top - 22), "what the model saw", fill=INK, font=_font(15))
        gap = (WIDTH_PX - 2 * MARGIN_PX - STRIP_PX) / max(1, len(strip) - 1)
        for place, rgb in enumerate(strip):
            left = round(MARGIN_PX + place * gap)
            side = min(STRIP_PX, int(gap) - 4) if len(strip) > 1 else STRIP_PX
            box = (left, top, left + side, top + side)
            if rgb is None:
                draw.rectangle(box, fill=(0, 0, 0))
            else:
                picture.paste(Image.fromarray(rgb).resize((side, side), _SMOOTH), box[:2])
            if place == len(strip) - 1:
                draw.rectangle(box, outline=DRIVEN, width=4)

    def _draw_words(self, draw: ImageDraw.ImageDraw, decision: HeardDecision | None) -> None:
        top = HEIGHT_PX - 48
        if decision is None:
            draw.text((MARGIN_PX, top), "waiting for the first decision", fill=INK, font=_font(24))
            return
        number = self._record.decisions.index(decision) + 1
        draw.text((MARGIN_PX, top), f"{number}. {decision.sentence}", fill=INK, font=_font(26))
        left, right = 600, 760
        draw.rectangle((left, top + 6, right, top + 28), fill=FAINT)
        filled = left + round((right - left) * decision.confidence)
        draw.rectangle((left, top + 6, filled, top + 28), fill=BAR)
        text = (
            f"{decision.confidence:.0%} sure, {1e3 * decision.latency_s:.0f} ms, "
            f"{decision.goal_distance_m:.1f} m to go"
        )
        draw.text((right + 14, top + 3), text, fill=INK, font=_font(20))


def write_drive_video(path: Path, record: DriveRecord, episode: Episode, rate_hz: int) -> str:
    """Encodes a drive in real time at the camera's rate; returns the codec's name."""
    composer = FrameComposer(record, episode)

    def pictures() -> Iterable[Image.Image]:
        picture = None
        for stamp_s, jpeg in record.images:
            picture = composer.compose(stamp_s, jpeg)
            yield picture
        if picture is not None:
            yield from [picture] * round(HOLD_S * rate_hz)

    return write_video(path, pictures, rate_hz)


def write_video(path: Path, pictures: Callable[[], Iterable[Image.Image]], rate_hz: int) -> str:
    """Encodes RGB pictures of one even size as H.264, or MPEG-4 where that is not built in."""
    import av

    codec = next(name for name in PREFERRED_CODECS if name in av.codecs_available)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = None
        for number, picture in enumerate(pictures()):
            if stream is None:
                stream = container.add_stream(codec, rate=rate_hz)
                stream.width, stream.height = picture.size
                stream.pix_fmt = "yuv420p"
                if codec == "libx264":
                    stream.options = {"crf": "23", "preset": "veryfast"}
                else:
                    stream.bit_rate = 4_000_000
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    return codec


def _draw_header(draw: ImageDraw.ImageDraw, text: str) -> None:
    """The whole text if any size has room for it, else its beginning in the smallest."""
    top, room_px = 8, HEADER_PX - 12
    for size_px in HEADER_FONTS_PX:
        font, step_px = _font(size_px), round(1.3 * size_px)
        most = round((WIDTH_PX - 2 * MARGIN_PX) * len(text) / max(1.0, font.getlength(text)))
        rows = room_px // step_px
        lines = textwrap.wrap(text, round(0.96 * most), max_lines=rows, placeholder=" ...")
        if " ".join(lines) == " ".join(text.split()):
            break
    for row, line in enumerate(lines):
        draw.text((MARGIN_PX, top + step_px * row), line, fill=INK, font=font)


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)

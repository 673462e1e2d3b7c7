# SPDX-License-Identifier: Apache-2.0
"""What the model saw, as one picture: its frames side by side, oldest first, above its answer."""

from __future__ import annotations

import cv2
import numpy as np

CAPTION_HEIGHT_PX = 28
MAX_SIDE_PX = 224  # larger tiles are shrunk: the strip is for people
QUALITY = 85


def strip(frames: np.ndarray, caption: str) -> np.ndarray:
    """(F, S, S, 3) uint8 RGB frames -> (S' + 28, F S', 3) uint8 RGB with the caption below."""
    if frames.shape[1] > MAX_SIDE_PX:
        size = (MAX_SIDE_PX, MAX_SIDE_PX)
        frames = np.stack([cv2.resize(frame, size) for frame in frames])
    row = np.concatenate(list(frames), axis=1)
    bar = np.zeros((CAPTION_HEIGHT_PX, row.shape[1], 3), np.uint8)
    place = (8, CAPTION_HEIGHT_PX - 9)
    cv2.putText(bar, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    return np.concatenate([row, bar])


def strip_jpeg(frames: np.ndarray, caption: str) -> bytes:
    """The same as JPEG bytes."""
    picture = cv2.cvtColor(strip(frames, caption), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return encoded.tobytes()

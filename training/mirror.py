# SPDX-License-Identifier: Apache-2.0
"""The mirror image of a decision: the world swapped left and right, words and labels with it.

Exact, because the camera looks straight ahead, the robot is symmetric and every turn has a twin:
a mirrored apartment is as good as another one.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.sim.motion import FORWARD_M, TURN_RAD

# Index of each motion's twin: turns change sides.
MIRRORED_ACTIONS = np.array(
    [
        int(np.argmin(abs(FORWARD_M - forward_m) + abs(TURN_RAD + turn_rad)))
        for forward_m, turn_rad in zip(FORWARD_M, TURN_RAD, strict=True)
    ]
)


class WordSwap:
    """Swaps the tokens of 'left' and 'right' wherever they stand as words of their own."""

    def __init__(self, tokenizer, num_ids: int) -> None:
        left, right = (self._token(tokenizer, word) for word in ("left", "right"))
        self._table = np.arange(num_ids, dtype=np.int64)
        self._table[[left, right]] = right, left

    @staticmethod
    def _token(tokenizer, word: str) -> int:
        ids = tokenizer.encode(f" {word}")
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens; mirroring needs words that are one")
        return ids[0]

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any shape, swapped."""
        return self._table[ids]


def mirror_targets(targets: np.ndarray) -> np.ndarray:
    """(K, 6) targets of a fleet: both bearings change sides."""
    return targets * np.array([-1.0, 1.0, 1.0, 1.0, -1.0, 1.0], np.float32)


def mirror_patches(patches: np.ndarray) -> np.ndarray:
    """(P,) labels of a square grid, row by row, each row turned round."""
    side = round(len(patches) ** 0.5)
    return patches.reshape(side, side)[:, ::-1].ravel()

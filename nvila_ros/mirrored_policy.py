# SPDX-License-Identifier: Apache-2.0
"""A policy that also asks itself in the mirror: two looks at every decision, one choice.

The mirrored world is as real as the world: pictures turned round, left and right swapped in the
instruction and in the answers. A network that has learned the task answers both alike; where it
does not, the mean of the two is the better answer. It costs a second pass for every decision.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.decision import Decision
from nvila_ros.policy import NavigationPolicy

_SIDES = {"left": "right", "right": "left"}


def _twin(index: int) -> int:
    """The action that does the same to the other side."""
    kind = _SIDES.get(ACTIONS[index].kind, ACTIONS[index].kind)
    place = [a.index for a in ACTIONS if a.kind == ACTIONS[index].kind].index(index)
    return [a.index for a in ACTIONS if a.kind == kind][place]


TWINS = tuple(_twin(action.index) for action in ACTIONS)


def mirrored_text(text: str) -> str:
    """Left for right and right for left, where they stand as words; case is kept."""

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = _SIDES[word.lower()]
        return other.capitalize() if word[0].isupper() else other

    return re.sub(r"\b(left|right)\b", swap, text, flags=re.IGNORECASE)


class MirroredPolicy:
    """Two policies on one network, the second in the mirror; used like a `NavigationPolicy`."""

    def __init__(self, plain: NavigationPolicy, mirrored: NavigationPolicy) -> None:
        self._plain, self._mirrored = plain, mirrored
        self._last: tuple[Decision, Decision] | None = None

    @property
    def num_samples(self) -> int:
        """Frames kept in this episode."""
        return self._plain.num_samples

    def reset(self, instruction: str) -> None:
        """Begins an episode: checks the instruction, forgets all frames."""
        self._plain.reset(instruction)
        self._mirrored.reset(mirrored_text(instruction))
        self._last = None

    def observe(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool:
        """Takes a (H, W, 3) uint8 image and its pose; True when it became a sample."""
        turned = np.ascontiguousarray(rgb[:, ::-1])
        self._mirrored.observe(turned, x_m, -y_m, -yaw_rad, stamp_s)
        return self._plain.observe(rgb, x_m, y_m, yaw_rad, stamp_s)

    def decide(self) -> Decision:
        """The action whose geometric mean of both probabilities is largest."""
        begin_s = time.perf_counter()
        plain, mirrored = self._plain.decide(), self._mirrored.decide()
        self._last = plain, mirrored
        products = [
            math.sqrt(own * mirrored.probabilities[TWINS[index]])
            for index, own in enumerate(plain.probabilities)
        ]
        total = sum(products)
        if total == 0.0:  # they agree on nothing that is offered
            return plain
        probabilities = tuple(product / total for product in products)
        index = max(range(len(ACTIONS)), key=probabilities.__getitem__)
        return dataclasses.replace(
            plain,
            action=ACTIONS[index],
            confidence=probabilities[index],
            probabilities=probabilities,
            latency_s=time.perf_counter() - begin_s,
            num_encoded_frames=plain.num_encoded_frames + mirrored.num_encoded_frames,
        )

    def tried(self, decision: Decision) -> None:
        """Notes that the last decision's motion was carried out, or tried until it failed."""
        assert self._last is not None
        self._plain.tried(decision)
        twin = ACTIONS[TWINS[decision.index]]
        self._mirrored.tried(dataclasses.replace(self._last[1], action=twin))

    def strip(self) -> bytes | None:
        """JPEG of the frames exactly as the last decision saw them, with the plain answer."""
        return self._plain.strip()

    def prepare(self) -> int:
        """Encodes sampled frames that no decision has shown yet; returns how many."""
        return self._plain.prepare() + self._mirrored.prepare()

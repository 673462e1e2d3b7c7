# SPDX-License-Identifier: Apache-2.0
"""What a fleet says of its robots at a decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvila_ros.training.twins import TwinLabels


@dataclass
class View:
    """Segmentation labels and a conversation about one robot's current frame."""

    robot: int
    frame: int
    patch_category: np.ndarray  # (P,) uint8
    patch_colour: np.ndarray  # (P,) uint8
    ids: np.ndarray  # (len,) expanded ids of a conversation about the frame
    supervised: np.ndarray  # (len,) bool


@dataclass
class DecisionLabels:
    """What the oracle says at the pose of each active robot; arrays over the active robots."""

    robots: np.ndarray  # (n,) int64 indices into the fleet
    first_frame: np.ndarray  # (n,) int64 first frame not sent yet
    last_frame: np.ndarray  # (n,) int64 current frame's index
    costs: np.ndarray  # (n, 10) float32 cost-to-go of each action, capped
    # (n, 6) float32: sin, cos of the bearing of the path, log1p of the distance to the goal; then 1
    # where the next door or the goal is in the current frame, sin, cos of its bearing, or zeros.
    targets: np.ndarray
    distance_m: np.ndarray  # (n,) float64 along the way to the goal, capped at 50
    clause: np.ndarray  # (n,) int64 index of the instruction's clause under way
    shown: np.ndarray  # (n, 8) int64 frame indices that the decision shows, -1 for black
    allowed: np.ndarray  # (n, 10) bool actions that the restraint offers
    views: list[View]
    twins: TwinLabels | None = None  # the same frames under other instructions

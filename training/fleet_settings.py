# SPDX-License-Identifier: Apache-2.0
"""How fleets drive, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvila_ros.training.searching import MIN_SHARE
from nvila_ros.training.vocabulary import NetworkShape

ORACLE, STUDENT, EXAM = 0, 1, 2


@dataclass(frozen=True)
class FleetSettings:
    """How a fleet drives and what it labels."""

    num_robots: int = 16
    num_rounds: int = 3  # in one apartment
    image_size_px: int = 192  # what the model takes
    camera_size_px: int = 224  # what the renderer draws, resized as the preprocessor does
    max_frames: int = 112  # one frame per 25 cm or 15 degrees
    max_decisions: int = 56
    student_share: float = 0.0
    exam_share: float = 0.0
    view_share: float = 0.3  # of decisions whose current frame gets segmentation labels
    patches_per_side: int = 12
    greedy_share: float = 0.5  # of the student's robots that take the likeliest action
    noise_levels: tuple[float, ...] = (0.0, 0.1, 0.25)  # random actions of oracle robots
    lost_margin_m: float = 4.0  # a robot this much farther than it started gives up
    min_share: float = MIN_SHARE  # of the picture for an object to count as seen
    searches: bool = False  # the teacher looks around where its frames do not show the next aim
    num_twins: int = 0  # other goals for which a robot's frames are labelled too
    network: NetworkShape = field(default_factory=NetworkShape)

# SPDX-License-Identifier: Apache-2.0
"""Cuts a recording into episodes: from an instruction to its result, the next one, or the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nvila_ros.errors import DataError
from nvila_ros.recording.bag_messages import Said
from nvila_ros.recording.bag_reader import Recording


@dataclass(frozen=True)
class BagEpisode:
    """One instruction and what was decided for it; times are those of the file."""

    number: int  # from 1, in the order of the recording
    instruction: str
    begin_s: float
    end_s: float
    decisions: tuple[Said, ...]  # as ~/decision said them
    result: str | None  # of the navigator, for instance SUCCEEDED; None where it said none


def cut_episodes(recording: Recording, instruction: str | None = None) -> list[BagEpisode]:
    """Episodes of the instructions heard; `instruction` is for a recording that has none.

    DataError where there is neither.
    """
    said = list(recording.instructions)
    if not said:
        if instruction is None:
            raise DataError(
                f"{recording.path} holds no instruction; say what the robot was told: "
                "--instruction 'Go through the door and stop at the sofa.'"
            )
        said = [Said(-math.inf, instruction)]
    elif instruction is not None:
        raise DataError(
            f"{recording.path} holds {len(said)} instructions of its own; leave --instruction out"
        )
    found = []
    for number, item in enumerate(said, start=1):
        end_s = said[number].log_s if number < len(said) else math.inf
        result = next(
            (
                state
                for state in recording.states
                if item.log_s < state.log_s < end_s and state.row.get("result")
            ),
            None,
        )
        end_s = min(end_s, math.inf if result is None else result.log_s)
        decisions = tuple(
            decision
            for decision in recording.decisions
            # The result may overtake the last decision by a moment.
            if item.log_s < decision.log_s < end_s + 0.5 and "index" in decision.row
        )
        row = {} if result is None else result.row
        found.append(BagEpisode(number, item.text, item.log_s, end_s, decisions, row.get("result")))
    return found

# SPDX-License-Identifier: Apache-2.0
"""A driven recording becomes training rows: what the robot did is what the model is to answer.

Odometry is cut into the unit motions of the vocabulary (25 cm, 15 degrees), a frame belongs to each
as in the robot's own history, and up to three equal units become one decision.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass

from nvila_ros.actions import ACTIONS
from nvila_ros.config import HistoryConfig
from nvila_ros.errors import DataError
from nvila_ros.recording.bag_episodes import BagEpisode
from nvila_ros.recording.bag_messages import Picture
from nvila_ros.recording.bag_reader import Recording
from nvila_ros.training.data.sample import Frame, FrameBytes, Sample, Turn
from nvila_ros.training.data.trajectories import FORWARD, LEFT, RIGHT, STOP, decisions

UNITS = HistoryConfig()  # what the robot's own history counts as a step
REST_S = 0.8  # a robot that stands for so long at the end has arrived
REST_M, REST_RAD = 0.03, math.radians(2.0)


class Labels(str, enum.Enum):
    """What the answers are."""

    driven = "driven"  # the motions that odometry shows, whoever drove
    decided = "decided"  # the recorded decisions of the model


@dataclass
class RowCounts:
    """What became of the episodes."""

    num_episodes: int = 0
    num_rows: int = 0
    num_failed: int = 0  # ended with another result than SUCCEEDED
    num_still: int = 0  # nothing was driven
    num_backwards: int = 0  # cut off where the robot drove backwards: there is no word for it
    num_without_stop: int = 0  # the robot was still moving at the end


def samples(
    recording: Recording,
    episodes: list[BagEpisode],
    counts: RowCounts,
    *,
    labels: Labels = Labels.driven,
    keeps_failed: bool = False,
    source: str = "recordings",
) -> Iterator[Sample]:
    """Rows of every episode; those that the navigator did not finish are left out by default."""
    pictures = recording.pictures()
    pending: Picture | None = None
    for episode in episodes:
        seen: list[Picture] = (
            [] if pending is None or pending.log_s < episode.begin_s else [pending]
        )
        pending = None
        for picture in pictures:
            if picture.log_s >= episode.end_s:
                pending = picture
                break
            if picture.log_s >= episode.begin_s:
                seen.append(picture)
        counts.num_episodes += 1
        if episode.result not in (None, "SUCCEEDED") and not keeps_failed:
            counts.num_failed += 1
            continue
        rows = list(_episode_rows(recording, episode, seen, counts, labels, source))
        counts.num_rows += len(rows)
        counts.num_still += not rows
        yield from rows


def require_rows(recording: Recording, counts: RowCounts) -> None:
    """DataError where nothing came of a recording, with the reason."""
    if counts.num_rows == 0:
        raise DataError(
            f"{recording.path} gave no rows: of {counts.num_episodes} episodes "
            f"{counts.num_failed} failed (--keep-failed takes them) and in {counts.num_still} "
            "nothing was driven"
        )


def _episode_rows(
    recording: Recording,
    episode: BagEpisode,
    seen: list[Picture],
    counts: RowCounts,
    labels: Labels,
    source: str,
) -> Iterator[Sample]:
    kept, units = drive_units(recording, seen, counts)
    if labels is Labels.driven:
        has_arrived = episode.result == "SUCCEEDED" or (
            episode.result is None and stands_at_the_end(recording, seen)
        )
        counts.num_without_stop += not has_arrived
        if not any(unit != STOP for unit in units):
            return
        answers = [(d.place, d.index) for d in decisions([*units, STOP] if has_arrived else units)]
    else:
        answers = _decided(episode, kept)
    group = f"{recording.path.stem}-{episode.number}"
    frames = [_frame(picture, f"{group}.{number}") for number, picture in enumerate(kept)]
    for number, (place, index) in enumerate(answers):
        turn = Turn(user=episode.instruction, answer=ACTIONS[index].sentence)
        yield Sample(
            key=f"{group}-{number}",
            source=source,
            kind="navigation",
            frames=tuple(frames[: place + 1]),
            turns=(turn,),
            group=group,
        )


def drive_units(
    recording: Recording, seen: list[Picture], counts: RowCounts
) -> tuple[list[Picture], list[int]]:
    """Frames kept by motion, and the unit motion after each but the last.

    Turning and driving at once, as with a joystick, become turns and stretches in the order in
    which each had grown to a unit; what is left over counts for the next.
    """
    kept: list[Picture] = []
    units: list[int] = []
    x_m = y_m = heading_rad = 0.0
    for picture in seen:
        now_x_m, now_y_m, yaw_rad = recording.pose_at(picture.stamp_s)
        if not kept:
            kept.append(picture)
            x_m, y_m, heading_rad = now_x_m, now_y_m, yaw_rad
            continue
        turned_rad = yaw_rad - heading_rad  # odometry's yaw is unwrapped
        along_m = (now_x_m - x_m) * math.cos(yaw_rad) + (now_y_m - y_m) * math.sin(yaw_rad)
        if along_m < -UNITS.step_m * UNITS.step_tolerance:
            counts.num_backwards += 1
            break
        found: list[int] = []
        num_turns = int(abs(turned_rad) / UNITS.step_rad + 1 - UNITS.step_tolerance)
        if num_turns:
            heading_rad += math.copysign(num_turns * UNITS.step_rad, turned_rad)
            found += [LEFT if turned_rad > 0 else RIGHT] * num_turns
        num_stretches = int(along_m / UNITS.step_m + 1 - UNITS.step_tolerance)
        if num_stretches > 0:
            # What is left of the way counts on; what the robot slid sideways does not.
            left_m = along_m - num_stretches * UNITS.step_m
            x_m = now_x_m - left_m * math.cos(yaw_rad)
            y_m = now_y_m - left_m * math.sin(yaw_rad)
            found += [FORWARD] * num_stretches
        # A camera slower than the motion: the same frame stands for the units in between.
        units += found
        kept += [picture] * len(found)
    return kept, units


def stands_at_the_end(recording: Recording, seen: list[Picture]) -> bool:
    """Whether the robot came to rest before the last picture."""
    if not seen:
        return False
    end_s = seen[-1].stamp_s
    if end_s - seen[0].stamp_s < REST_S:
        return False
    now, before = recording.pose_at(end_s), recording.pose_at(end_s - REST_S)
    moved_m = math.hypot(now[0] - before[0], now[1] - before[1])
    return moved_m < REST_M and abs(now[2] - before[2]) < REST_RAD


def _decided(episode: BagEpisode, kept: list[Picture]) -> list[tuple[int, int]]:
    """(place of the newest kept frame, index) of each recorded decision."""
    if not episode.decisions:
        raise DataError(
            f"episode {episode.number} holds no recorded decisions; use --labels driven"
        )
    found = []
    for said in episode.decisions:
        stamp_s = said.row.get("stamp_s", math.inf)
        places = [place for place, picture in enumerate(kept) if picture.stamp_s <= stamp_s + 1e-3]
        found.append((places[-1] if places else 0, int(said.row["index"])))
    return found


def _frame(picture: Picture, name: str) -> Frame:
    if picture.content is not None:
        return FrameBytes(picture.content, name)
    return picture.rgb()

# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation on VLN-CE, from the files that lie in its output folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.errors import DataError
from nvila_ros.evaluation.html_report import write_report
from nvila_ros.evaluation.html_report_entries import DecisionEntry, EpisodeEntry
from nvila_ros.evaluation.metrics import EpisodeMetrics
from nvila_ros.evaluation.vlnce_episodes import VlnCeEpisode
from nvila_ros.evaluation.vlnce_metrics import SUCCESS_RADIUS_M
from nvila_ros.evaluation.vlnce_run import STEP_RAD, discrete_steps

_INDEX = {action.sentence: action.index for action in ACTIONS}


def write_vlnce_report(
    folder: Path, run: dict[str, Any], episodes: Sequence[VlnCeEpisode], output: Path
) -> Path:
    """The page over all episodes that have a file in `output`; DataError where none has."""
    entries = []
    for episode in episodes:
        path = output / "episodes" / f"{episode.episode_id}.json"
        if path.is_file():
            try:
                entries.append(entry_of_row(episode, json.loads(path.read_text())))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path} is no result of an episode ({error!r}); remove it and run again"
                ) from None
    return write_report(folder, {**run, "success_radius_m": SUCCESS_RADIUS_M}, entries)


def entry_of_row(episode: VlnCeEpisode, row: dict[str, Any]) -> EpisodeEntry:
    """One file of `vlnce_run`; there is no plan of a scan, and a decision's share is not kept."""
    indices = [_INDEX[sentence] for sentence in row["sentences"]]
    num_steps = len(row["path_m"]) - 1
    places = np.cumsum([0, *(len(discrete_steps(ACTIONS[index])) for index in indices)])
    decisions = tuple(
        DecisionEntry(index=index, confidence=None, place=int(min(place, num_steps)))
        for index, place in zip(indices, places[:-1], strict=True)
    )
    number = int(row["episode_id"]) if str(row["episode_id"]).isdigit() else 0
    metrics = EpisodeMetrics(
        seed=number,
        success=bool(row["sr"]),
        oracle_success=bool(row["os"]),
        stopped=bool(row["stopped"]),
        spl=float(row["spl"]),
        navigation_error_m=float(row["ne"]),
        ndtw=float(row["ndtw"]),
        sdtw=float(row["sdtw"]),
        trajectory_length_m=float(row["tl"]),
        start_distance_m=float(episode.geodesic_m),
        num_decisions=int(row["num_decisions"]),
        num_primitives=max(1, num_steps),  # discrete steps: collisions are counted per step
        num_collisions=int(row["num_collisions"]),
    )
    path_m = np.asarray(row["path_m"], dtype=float)[:, :2]
    headings_rad = _headings_rad(episode.start_yaw_rad, indices, len(path_m))
    return EpisodeEntry(
        key=str(row["episode_id"]),
        instruction=str(row["instruction"]),
        metrics=metrics,
        decisions=decisions,
        driven=np.column_stack([path_m, headings_rad]),
        reference=np.asarray(episode.reference_m)[:, :2],
        goal=(float(episode.goal_m[0]), float(episode.goal_m[1])),
        kind=str(row.get("language") or "") or None,
    )


def _headings_rad(start_rad: float, indices: Sequence[int], count: int) -> np.ndarray:
    """(count,) where the robot looked after each discrete step."""
    turns = [0.0]
    for index in indices:
        action = ACTIONS[index]
        for _ in discrete_steps(action):
            turns.append(np.sign(action.turn_rad) * STEP_RAD)
    turns += [0.0] * max(0, count - len(turns))
    return start_rad + np.cumsum(turns[:count])

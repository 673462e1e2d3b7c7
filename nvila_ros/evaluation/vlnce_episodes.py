# SPDX-License-Identifier: Apache-2.0
"""Episode files of VLN-CE (R2R-CE and RxR-CE), in ROS's axes.

Habitat looks along -z with y up; REP-103 looks along x with z up: x = -z', y = -x', z = y'. A turn
to the left is positive in both.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nvila_ros.errors import NvilaError

RXR_ENGLISH = ("en-US", "en-IN")


class EpisodeFileError(NvilaError):
    """An episode file is missing or not in VLN-CE's form."""


@dataclass(frozen=True, kw_only=True)
class VlnCeEpisode:
    """One instruction in one scan; positions in metres, in ROS's axes."""

    episode_id: str
    scene_id: str  # as the file says: mp3d/<scan>/<scan>.glb
    instruction: str
    language: str
    start_m: np.ndarray  # (3,)
    start_yaw_rad: float
    goal_m: np.ndarray  # (3,)
    geodesic_m: float  # from start to goal
    reference_m: (
        np.ndarray
    )  # (R, 3) what nDTW compares with: the dense oracle path where it is known


def ros_from_habitat(position: npt.ArrayLike) -> np.ndarray:
    """(..., 3) positions in Habitat's axes -> (..., 3) in REP-103's."""
    x, y, z = np.moveaxis(np.asarray(position, float), -1, 0)
    return np.stack([-z, -x, y], axis=-1)


def habitat_from_ros(position: npt.ArrayLike) -> np.ndarray:
    """The way back."""
    x, y, z = np.moveaxis(np.asarray(position, float), -1, 0)
    return np.stack([-y, z, -x], axis=-1)


def yaw_from_habitat(quaternion_xyzw: Sequence[float]) -> float:
    """Heading in REP-103 (counter-clockwise, in (-pi, pi]) of an upright Habitat agent."""
    x, y, z, w = quaternion_xyzw
    if not math.isclose(x * x + y * y + z * z + w * w, 1.0, abs_tol=1e-3):
        raise EpisodeFileError(f"the rotation {tuple(quaternion_xyzw)} is no unit quaternion")
    # Where the agent looks: -z turned by the quaternion.
    forward = (-(2.0 * (x * z + w * y)), -(2.0 * (y * z - w * x)), -(1.0 - 2.0 * (x * x + y * y)))
    ahead = ros_from_habitat(forward)
    return math.atan2(ahead[1], ahead[0])


def habitat_from_yaw(yaw_rad: float) -> list[float]:
    """Quaternion (x, y, z, w) of an upright Habitat agent with this heading."""
    return [0.0, math.sin(yaw_rad / 2), 0.0, math.cos(yaw_rad / 2)]


def episode_paths(folder: str | Path, dataset: str, split: str) -> tuple[Path, Path]:
    """(episodes, oracle locations) of 'r2r' or 'rxr' in a data set's folder."""
    place = Path(folder) / split
    name = split if dataset == "r2r" else f"{split}_guide"
    return place / f"{name}.json.gz", place / f"{name}_gt.json.gz"


def load_vlnce(
    folder: str | Path, dataset: str, split: str, languages: Sequence[str] | None = None
) -> list[VlnCeEpisode]:
    """All episodes of a split, in the file's order; RxR's English ones unless told otherwise."""
    if dataset not in ("r2r", "rxr"):
        raise EpisodeFileError(f"the data set is {dataset!r}, expected r2r or rxr")
    if dataset == "rxr" and languages is None:
        languages = RXR_ENGLISH
    path, oracle_path = episode_paths(folder, dataset, split)
    oracle = _read(oracle_path) if oracle_path.is_file() else {}
    rows = _read(path).get("episodes")
    if not isinstance(rows, list):
        raise EpisodeFileError(f"{path} holds no list 'episodes'")
    made = [_episode(row, oracle, path) for row in rows]
    return [row for row in made if languages is None or row.language in languages]


def _episode(row: dict[str, Any], oracle: dict[str, Any], path: Path) -> VlnCeEpisode:
    try:
        episode_id = str(row["episode_id"])
        known = oracle.get(episode_id)
        reference = known["locations"] if known else row["reference_path"]
        return VlnCeEpisode(
            episode_id=episode_id,
            scene_id=row["scene_id"],
            instruction=row["instruction"]["instruction_text"].strip(),
            language=row["instruction"].get("language", "en"),
            start_m=ros_from_habitat(row["start_position"]),
            start_yaw_rad=yaw_from_habitat(row["start_rotation"]),
            goal_m=ros_from_habitat(row["goals"][0]["position"]),
            geodesic_m=float(row["info"]["geodesic_distance"]),
            reference_m=ros_from_habitat(reference),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EpisodeFileError(
            f"{path}: episode {row.get('episode_id')!r} lacks {error}; expected VLN-CE's form "
            "(R2R_VLNCE_v1-3_preprocessed, RxR_VLNCE_v0)"
        ) from error


def _read(path: Path) -> Any:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise EpisodeFileError(
            f"cannot read {path}: {error}; give the folder that holds <split>/<split>.json.gz"
        ) from error
